//! What LXD's and Incus's hosts expect of an agent beside its API.

use std::{fs, path::PathBuf, time::Duration};

use harness::{Pair, RawClient, TestAgent, TestFolder, eventually};
use serde_json::json;
use vsock_agent::{Config, ConfigShare};

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
        config.share = Some(ConfigShare {
            folder: self.folder.path().to_owned(),
            root: self.folder.path().join("guest"),
        });
        config.status_ports = vec![self.folder.path().join("missing"), self.port()];
    }
}

#[tokio::test]
async fn the_host_reads_when_the_agent_starts_is_told_of_the_host_and_stops() {
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
async fn a_host_that_is_refused_is_not_connected() {
    let host = Host::new();
    let agent = TestAgent::configured(|config| host.configure(config));
    let client = RawClient::new(&agent.socket());
    assert_eq!(client.request("PUT", "/1.0", "{}").await.status, 400);
    assert!(!host.words().contains(&"CONNECTED".to_owned()));
}

#[tokio::test]
async fn a_share_that_makes_no_sense_does_not_stop_the_agent() {
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
