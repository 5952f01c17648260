//! The host process against a guest that is not ours (`openssl`, playing LXD's agent), and against
//! our own agent.

mod keys;

use std::{
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use harness::{Pair, RawClient, TestAgent, TestFolder, eventually};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    process::Command,
};
use vsock_agent::{ListenAddress, Security};
use vsock_agent_client::{self as client, Identity};
use vsock_agent_serve::{Guest, GuestTls, HostConfig, HostProcess, instance::InstanceStore};

const PORT: u32 = 9000;

/// Patience with what takes no time.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Less than the time until an agent is looked for again that nobody knows to be gone, 30 s.
const AT_ONCE: Duration = Duration::from_secs(20);

/// A host and the guests it serves.
struct Host {
    process: HostProcess,
    folder: TestFolder,
    own: Pair,
}

/// A guest: its name, its agent's pair, and where its agent listens.
struct Machine {
    name: &'static str,
    pair: Pair,
    socket: PathBuf,
}

impl Machine {
    fn new(host: &Host, name: &'static str) -> Self {
        Self {
            name,
            pair: Pair::lxd(),
            socket: host.folder.path().join(name),
        }
    }

    /// Where this guest finds its host.
    fn host_socket(&self) -> PathBuf {
        PathBuf::from(format!("{}_{PORT}", self.socket.display()))
    }
}

impl Host {
    fn start() -> Self {
        let folder = TestFolder::new("host");
        let process = HostProcess::new(HostConfig {
            port: PORT,
            store: InstanceStore::new(folder.path().join("instances")),
            location: "here".to_owned(),
            status: folder.path().join("serve.json"),
            is_registered: Box::new(|_| true),
        });
        Self {
            process,
            folder,
            own: Pair::lxd(),
        }
    }

    async fn serve(&mut self, machines: &[&Machine]) {
        let guests = machines.iter().map(|machine| self.guest(machine)).collect();
        self.process.set_guests(guests).await;
    }

    fn guest(&self, machine: &Machine) -> Guest {
        let pem = self.own.identity_pem(&machine.pair);
        let identity = Identity::from_pem(&pem).unwrap();
        let tls = GuestTls::from_pem(&pem).unwrap();
        Guest {
            name: machine.name.to_owned(),
            endpoint: format!("unix:{}", machine.socket.display())
                .parse()
                .unwrap(),
            security: client::Security::Tls(identity),
            tls: Some(tls),
            revision: Vec::new(),
        }
    }

    fn set(&self, name: &str, values: &[(&str, &str)]) {
        let changes: Vec<_> = values
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Some((*value).to_owned())))
            .collect();
        let store = InstanceStore::new(self.folder.path().join("instances"));
        store.change(name, &changes).unwrap();
    }

    /// Connects to `socket` as `own` does, with another program's TLS, checks our certificate as stock
    /// agents do, and sends `request`. What came back.
    async fn send(&self, socket: &Path, own: Option<&Pair>, request: &str) -> String {
        let folder = TestFolder::new("openssl");
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let mut command = Command::new("openssl");
        command
            .args(["s_client", "-quiet", "-tls1_3", "-verify_return_error"])
            .args(["-verify_hostname", "unspecified", "-CAfile"])
            .arg(file("host.crt", &self.own.certificate))
            .arg("-unix")
            .arg(socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(own) = own {
            command.arg("-cert").arg(file("own.crt", &own.certificate));
            command.arg("-key").arg(file("own.key", &own.key));
        }
        let openssl = command.spawn();
        let mut openssl = openssl.expect("openssl is missing: apt-get install openssl");
        let mut stdin = openssl.stdin.take().unwrap();
        // It may have been refused already.
        let _ = stdin.write_all(request.as_bytes()).await;
        let mut answer = String::new();
        let mut stdout = openssl.stdout.take().unwrap();
        stdout.read_to_string(&mut answer).await.unwrap();
        drop(stdin);
        openssl.wait().await.unwrap();
        answer
    }

    async fn ask(&self, machine: &Machine, method: &str, path: &str, body: &str) -> (u16, Value) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: custom.socket\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = self
            .send(&machine.host_socket(), Some(&machine.pair), &request)
            .await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap())
    }

    async fn get(&self, machine: &Machine, path: &str) -> (u16, Value) {
        let (status, mut body) = self.ask(machine, "GET", path, "").await;
        (status, body["metadata"].take())
    }
}

async fn until(holds: impl AsyncFnMut() -> bool) {
    assert!(eventually(TIMEOUT, holds).await);
}

#[tokio::test]
async fn serve_answers_a_stock_agent() {
    let mut host = Host::start();
    let one = Machine::new(&host, "one");
    host.set(
        "one",
        &[
            ("user.a", "ä€\n"),
            ("user.odd key".replace(' ', "%").as_str(), "odd"),
            ("cloud-init.ssh-keys.ann", "ann:ssh-rsa AAAA"),
            ("cloud-init.user-data", "#cloud-config\nruncmd: [a]\n"),
            ("user.meta-data", "more: yes\n"),
            ("devices.eth0.type", "nic"),
            ("devices.eth0.hwaddr", "00:16:3e:00:00:01"),
            ("hostname", "web"),
        ],
    );
    host.serve(&[&one]).await;
    let (status, info) = host.get(&one, "/1.0").await;
    assert_eq!(status, 200);
    assert_eq!(
        (&info["state"], &info["location"]),
        (&json!("Started"), &json!("here"))
    );
    assert_eq!(info["instance_type"], "virtual-machine");
    let keys = json!([
        "/1.0/config/cloud-init.user-data",
        "/1.0/config/cloud-init.vendor-data",
        "/1.0/config/user.a",
        "/1.0/config/user.meta-data",
        "/1.0/config/user.odd%key",
    ]);
    assert_eq!(host.get(&one, "/1.0/config").await, (200, keys));
    assert_eq!(
        host.get(&one, "/1.0/config/user.a").await,
        (200, json!("ä€\n"))
    );
    assert_eq!(
        host.get(&one, "/1.0/config/user.odd%25key").await,
        (200, json!("odd"))
    );
    let (_, user_data) = host.get(&one, "/1.0/config/cloud-init.user-data").await;
    let user_data = user_data.as_str().unwrap();
    assert!(
        user_data.contains("AAAA") && user_data.contains("runcmd"),
        "{user_data}"
    );
    let (_, meta_data) = host.get(&one, "/1.0/meta-data").await;
    let meta_data = meta_data.as_str().unwrap();
    assert!(meta_data.starts_with("instance-id: "), "{meta_data}");
    assert!(
        meta_data.ends_with("\nlocal-hostname: web\nmore: yes\n"),
        "{meta_data}"
    );
    let devices = json!({ "eth0": { "type": "nic", "hwaddr": "00:16:3e:00:00:01" } });
    assert_eq!(host.get(&one, "/1.0/devices").await, (200, devices));
}

#[tokio::test]
async fn serve_hides_private_keys_with_403_and_missing_ones_with_404() {
    let mut host = Host::start();
    let one = Machine::new(&host, "one");
    host.set("one", &[("cloud-init.ssh-keys.ann", "ann:ssh-rsa AAAA")]);
    host.serve(&[&one]).await;
    for key in [
        "cloud-init.ssh-keys.ann",
        "security.devlxd",
        "volatile.uuid",
        "instance-id",
    ] {
        let path = format!("/1.0/config/{key}");
        assert_eq!(host.get(&one, &path).await.0, 403, "{key}");
    }
    for path in [
        "/1.0/config/user.none",
        "/1.0/nothing",
        "/1.0/instances/two",
        "/1.0/config/../../etc/passwd/x",
        "/1.0/exec",
    ] {
        let status = host.get(&one, path).await.0;
        assert!(matches!(status, 403 | 404), "{path}: {status}");
    }
    assert_eq!(host.ask(&one, "POST", "/1.0/exec", "{}").await.0, 405);
    host.set("one", &[("security.devlxd", "false")]);
    until(async || host.get(&one, "/1.0").await.0 == 403).await;
}

#[tokio::test]
async fn serve_records_the_guest_state() {
    let mut host = Host::start();
    let one = Machine::new(&host, "one");
    host.serve(&[&one]).await;
    for (body, status) in [
        (r#"{"state":"Ready"}"#, 200),
        (r#"{"state":"Rady"}"#, 400),
        ("", 400),
    ] {
        assert_eq!(
            host.ask(&one, "PATCH", "/1.0", body).await.0,
            status,
            "{body}"
        );
    }
    assert_eq!(host.get(&one, "/1.0").await.1["state"], "Ready");
    let kept = host.folder.path().join("serve.json");
    until(async || std::fs::read_to_string(&kept).is_ok_and(|text| text.contains("Ready"))).await;
}

#[tokio::test]
async fn serve_identifies_guests_by_certificate_and_origin() {
    let mut host = Host::start();
    let (one, two) = (Machine::new(&host, "one"), Machine::new(&host, "two"));
    host.serve(&[&one, &two]).await;
    let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for (socket, own, is_let_in) in [
        (one.host_socket(), Some(&one.pair), true),
        (two.host_socket(), Some(&two.pair), true),
        (one.host_socket(), Some(&two.pair), false),
        (two.host_socket(), Some(&one.pair), false),
        (one.host_socket(), Some(&Pair::lxd()), false),
        (one.host_socket(), Some(&host.own), false),
        (one.host_socket(), None, false),
    ] {
        let answer = host.send(&socket, own, request).await;
        assert_eq!(
            answer.contains("HTTP"),
            is_let_in,
            "{}: {answer}",
            socket.display()
        );
    }
    let mut plain = UnixStream::connect(one.host_socket()).await.unwrap();
    plain.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.windows(4).any(|word| word == b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn connection_limit_of_a_guest_does_not_affect_others() {
    let mut host = Host::start();
    let (one, two) = (Machine::new(&host, "one"), Machine::new(&host, "two"));
    host.serve(&[&one, &two]).await;
    let mut held = Vec::new();
    for _ in 0..200 {
        held.push(UnixStream::connect(one.host_socket()).await.unwrap());
    }
    assert_eq!(host.get(&two, "/1.0").await.0, 200);
    // Nor from itself: who says nothing makes room.
    assert_eq!(host.get(&one, "/1.0").await.0, 200);
    drop(held);
    until(async || {
        let request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        let answer = host
            .send(&one.host_socket(), Some(&one.pair), request)
            .await;
        answer.contains("200 OK")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ready_state_follows_the_agent_within_one_boot() {
    let mut host = Host::start();
    let one = Machine::new(&host, "one");
    host.set("one", &[("user.a", "first")]);
    let mut agent = start_agent(&host, &one);
    host.serve(&[&one]).await;
    guest_sees(&agent, "first").await;
    let patched = host.ask(&one, "PATCH", "/1.0", r#"{"state":"Ready"}"#);
    assert_eq!(patched.await.0, 200);
    let state = async || host.get(&one, "/1.0").await.1["state"].clone();
    let kept = host.folder.path().join("serve.json");
    let kept = async || std::fs::read_to_string(&kept).unwrap_or_default();
    until(async || kept().await.contains("Ready")).await;
    agent.stop();
    drop(agent);
    let is_over = async || state().await == "Started";
    assert!(eventually(AT_ONCE, is_over).await);
    until(async || !kept().await.contains("Ready")).await;
    let _agent = start_agent(&host, &one);
    until(async || state().await == "Ready").await;
}

#[tokio::test]
async fn serve_recreates_a_removed_socket_and_removes_it_at_exit() {
    let mut host = Host::start();
    let one = Machine::new(&host, "one");
    host.serve(&[&one]).await;
    std::fs::remove_file(one.host_socket()).unwrap();
    until(async || one.host_socket().exists()).await;
    assert_eq!(host.get(&one, "/1.0").await.0, 200);
    host.serve(&[]).await;
    until(async || !one.host_socket().exists()).await;
    host.serve(&[&one]).await;
    host.process.stop().await;
    assert!(!one.host_socket().exists());
}

/// Our agent for a machine, which asks where the machine's host listens.
fn start_agent(host: &Host, machine: &Machine) -> TestAgent {
    TestAgent::configured(|config| {
        let identity = host
            .folder
            .path()
            .join(format!("{}-identity", machine.name));
        let _ = std::fs::create_dir(&identity);
        machine.pair.write_agent(&identity, &[&host.own]);
        config.security = Security::Tls(identity);
        config.listen = vec![ListenAddress::Unix(machine.socket.clone())];
        config.guest.host = Some(ListenAddress::Unix(machine.host_socket()));
    })
}

async fn guest_sees(agent: &TestAgent, value: &str) {
    let guest = RawClient::new(&agent.guest_socket());
    until(async || {
        agent.guest_socket().exists()
            && UnixStream::connect(agent.guest_socket()).await.is_ok()
            && guest.get("/1.0/config/user.a").await.body == value
    })
    .await;
}

// The host must go on while the test waits for the agent's end.
#[tokio::test(flavor = "multi_thread")]
async fn guest_api_shows_data_and_changes_from_serve() {
    let mut host = Host::start();
    let one = Machine::new(&host, "one");
    host.set("one", &[("user.a", "first")]);
    let mut agent = start_agent(&host, &one);
    host.serve(&[&one]).await;
    guest_sees(&agent, "first").await;
    host.set("one", &[("user.a", "second")]);
    guest_sees(&agent, "second").await;
    // The next start of the agent hears of its host anew.
    agent.stop();
    drop(agent);
    host.set("one", &[("user.a", "third")]);
    let agent = start_agent(&host, &one);
    guest_sees(&agent, "third").await;
    let reached = host.folder.path().join("serve.json");
    until(async || std::fs::read_to_string(&reached).is_ok_and(|text| text.contains("lxd-agent")))
        .await;
}
