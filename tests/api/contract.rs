//! What LXD's and Incus's hosts expect of an agent beside its API.

use std::{fs, path::PathBuf, time::Duration};

use harness::{Pair, RawClient, TestAgent, TestFolder, eventually};
use serde_json::json;
use tokio::time::timeout;
use vsock_agent::{Config, ConfigShare, Feature, Features};

use crate::events::next_event;

/// How long a word may take to its port: beyond the time between two of them.
const PATIENCE: Duration = Duration::from_secs(15);

/// A host: its share, and its end of two status ports, one of which leads nowhere.
struct Host {
    folder: TestFolder,
}

impl Host {
    fn new() -> Self {
        let folder = TestFolder::new("host");
        fs::write(folder.path().join("port"), "").unwrap();
        Self { folder }
    }

    fn port(&self) -> PathBuf {
        self.folder.path().join("port")
    }

    fn words(&self) -> Vec<String> {
        let text = fs::read_to_string(self.port()).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn configure(&self, config: &mut Config) {
        config.share = Some(ConfigShare::new(self.folder.path().to_owned()));
        config.root = self.folder.path().join("guest");
        config.status_ports = vec![self.folder.path().join("missing"), self.port()];
    }
}

#[tokio::test]
async fn status_port_reports_start_host_and_stop() {
    let host = Host::new();
    let mut agent = TestAgent::configured(|config| host.configure(config));
    assert_eq!(host.words(), ["STARTED"]);
    let client = RawClient::new(&agent.socket());
    let certificate = Pair::lxd().certificate;
    let body = json!({ "cid": 2, "port": 39041, "certificate": certificate, "devlxd": false });
    let reply = client.request("PUT", "/1.0", &body.to_string()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(host.words().contains(&"CONNECTED".to_owned()));
    let again = async || {
        host.words()
            .iter()
            .filter(|word| *word == "STARTED")
            .count()
            > 1
    };
    assert!(eventually(PATIENCE, again).await, "{:?}", host.words());
    agent.stop();
    assert_eq!(host.words().last().unwrap(), "STOPPED");
}

#[tokio::test]
async fn refused_host_address_is_not_used() {
    let host = Host::new();
    let agent = TestAgent::configured(|config| host.configure(config));
    let client = RawClient::new(&agent.socket());
    assert_eq!(client.request("PUT", "/1.0", "{}").await.status, 400);
    assert!(!host.words().contains(&"CONNECTED".to_owned()));
}

#[tokio::test]
async fn invalid_config_share_does_not_stop_the_agent() {
    let host = Host::new();
    let folder = host.folder.path();
    for file in ["agent.conf", "agent-mounts.json"] {
        fs::write(folder.join(file), "{ nonsense").unwrap();
    }
    for folder in ["files", "nics"].map(|name| folder.join(name)) {
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("metadata.yaml"), "templates: [").unwrap();
        fs::write(folder.join("eth0.json"), "[").unwrap();
    }
    let agent = TestAgent::configured(|config| host.configure(config));
    let client = RawClient::new(&agent.socket());
    assert_eq!(client.get("/1.0").await.status, 200);
}

/// A disk of the host's, as its events tell of it.
fn device(action: &str, path: &str) -> String {
    let config = json!({ "type": "disk", "path": path, "source": "/srv" });
    let metadata = json!({ "action": action, "name": "data", "config": config });
    json!({ "type": "device", "metadata": metadata }).to_string()
}

#[tokio::test]
async fn hotplugged_share_is_mounted_and_confirmed() {
    let host = Host::new();
    fs::create_dir(host.folder.path().join("guest")).unwrap();
    let agent = TestAgent::configured(|config| host.configure(config));
    let client = RawClient::new(&agent.socket());
    let mut events = client.websocket("/1.0/events?type=device").await.unwrap();
    // No such share is there, so it is looked for again and again; hosts give up after 3 s.
    let body = device("added", "/mnt/data");
    let added = client.request("POST", "/1.0/events", &body);
    let reply = timeout(Duration::from_secs(3), added).await;
    assert_eq!(reply.expect("too late for a host").status, 200);
    assert!(host.folder.path().join("guest/mnt/data").is_dir());
    let event = next_event(&mut events).await;
    assert_eq!(event["metadata"]["action"], json!("added"));
}

#[tokio::test]
async fn share_is_not_mounted_outside_its_target() {
    let host = Host::new();
    fs::create_dir(host.folder.path().join("guest")).unwrap();
    let agent = TestAgent::configured(|config| host.configure(config));
    let client = RawClient::new(&agent.socket());
    for path in ["/mnt/../../out", "/..", "/"] {
        for action in ["added", "removed"] {
            let body = device(action, path);
            let reply = client.request("POST", "/1.0/events", &body).await;
            assert_eq!(reply.status, 200, "{path}");
        }
    }
    let inside = fs::read_dir(host.folder.path().join("guest")).unwrap();
    assert_eq!(inside.count(), 0);
    assert!(!host.folder.path().join("out").exists());
}

#[tokio::test]
async fn disabled_features_are_refused() {
    let agent = TestAgent::configured(|config| config.features = Features::only([Feature::State]));
    let client = RawClient::new(&agent.socket());
    for (method, path) in [
        ("POST", "/1.0/exec"),
        ("GET", "/1.0/sftp"),
        ("POST", "/1.0/port-forward"),
        ("GET", "/1.0/metrics"),
        ("GET", "/metrics"),
    ] {
        let reply = client.request(method, path, "{}").await;
        assert_eq!(reply.status, 403, "{path}: {reply:?}");
    }
    for path in ["/1.0", "/1.0/state", "/1.0/operations"] {
        let reply = client.request("GET", path, "").await;
        assert_eq!(reply.status, 200, "{path}: {reply:?}");
    }
    let device = json!({ "action": "added", "name": "data", "config": {
        "type": "disk", "path": "/mnt/data",
    }});
    let event = json!({ "type": "device", "metadata": device }).to_string();
    let reply = client.request("POST", "/1.0/events", &event).await;
    assert_eq!(reply.status, 200, "{reply:?}");
    assert!(!agent.folder().join("root/mnt").exists());
}

#[tokio::test]
async fn exec_policy_restricts_users_and_commands() {
    let agent = TestAgent::configured(|config| {
        config.exec_policy.users = Some(vec!["65534".to_owned()]);
        config.exec_policy.commands = Some(vec!["/usr/bin/env".parse().unwrap()]);
    });
    let client = RawClient::new(&agent.socket());
    let ask = |command: &str, user: u32| {
        let body = json!({
            "command": [command],
            "user": user,
            "group": user,
            "environment": { "LD_PRELOAD": "/tmp/x.so", "TERM": "xterm" },
            "wait-for-websocket": true,
        });
        let client = &client;
        async move { client.request("POST", "/1.0/exec", &body.to_string()).await }
    };
    for (command, user, reason) in [
        ("/usr/bin/env", 0, "as user 0"),
        ("/usr/bin/id", 65534, "this command"),
        ("env", 65534, "this command"),
    ] {
        let reply = ask(command, user).await;
        assert_eq!(reply.status, 403, "{command}: {reply:?}");
        let error = reply.body["error"].as_str().unwrap();
        assert!(error.contains(reason), "{command}: {error}");
    }
    let reply = ask("/usr/bin/env", 65534).await;
    assert_eq!(reply.status, 202, "{reply:?}");
    let environment = &reply.body["metadata"]["metadata"]["environment"];
    assert_eq!(environment["TERM"], json!("xterm"));
    assert_eq!(environment.get("LD_PRELOAD"), None);
}
