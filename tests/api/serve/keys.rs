//! All keys with their values in one answer, and what is too large for one.

use std::{path::PathBuf, sync::Arc};

use harness::{RawClient, TestAgent};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::{UnixListener, UnixStream},
    sync::Mutex,
    task::JoinSet,
};
use vsock_agent::ListenAddress;
use vsock_agent_client as client;
use vsock_agent_serve::Guest;

use super::{Host, Machine, TIMEOUT};

/// What asks for values too.
const QUERY: &str = "?recursion=1";

/// A way to the host that sees every request, and may take the query out of it.
struct Way {
    socket: PathBuf,
    seen: Arc<Mutex<String>>,
    _connections: JoinSet<()>,
}

impl Way {
    fn to(machine: &Machine, has_query: bool) -> Self {
        let (socket, host_socket) = (machine.socket.with_extension("way"), machine.host_socket());
        let _ = std::fs::remove_file(&socket);
        let listener = UnixListener::bind(&socket).unwrap();
        let seen = Arc::new(Mutex::new(String::new()));
        let keeper = Arc::clone(&seen);
        let mut connections = JoinSet::new();
        connections.spawn(async move {
            let mut open = JoinSet::new();
            loop {
                let (agent, _) = listener.accept().await.unwrap();
                let host = UnixStream::connect(&host_socket).await.unwrap();
                let (mut from_agent, mut to_agent) = agent.into_split();
                let (mut from_host, mut to_host) = host.into_split();
                open.spawn(async move { drop(copy(&mut from_host, &mut to_agent).await) });
                let seen = Arc::clone(&keeper);
                open.spawn(async move {
                    let mut bytes = [0; 4096];
                    while let Ok(length @ 1..) = from_agent.read(&mut bytes).await {
                        // The agent writes a request at once, and none before it has the answer.
                        let mut text = String::from_utf8_lossy(&bytes[..length]).into_owned();
                        if !has_query {
                            text = text.replace(QUERY, "");
                        }
                        seen.lock().await.push_str(&text);
                        to_host.write_all(text.as_bytes()).await.unwrap();
                    }
                });
            }
        });
        Self {
            socket,
            seen,
            _connections: connections,
        }
    }

    async fn requests(&self) -> usize {
        self.seen.lock().await.matches("GET /").count()
    }
}

/// An agent without TLS that takes this way, with its data.
async fn agent_over(way: &Way) -> TestAgent {
    let mut agent = TestAgent::configured(|config| {
        config.guest.host = Some(ListenAddress::Unix(way.socket.clone()));
        config.guest.ready_timeout = Some(TIMEOUT);
    });
    agent.ready().await;
    agent
}

async fn serve_plain(host: &mut Host, machine: &Machine) {
    let guest = Guest {
        security: client::Security::Plain,
        tls: None,
        ..host.guest(machine)
    };
    host.process.set_guests(vec![guest]).await;
}

#[tokio::test]
async fn serve_returns_all_visible_keys_at_once() {
    let mut host = Host::start();
    let one = Machine::new(&host, "one");
    let user_data = "#cloud-config\nruncmd: [a]\n";
    host.set(
        "one",
        &[
            ("user.odd%key", "ä€\n"),
            ("security.devlxd", "true"),
            ("cloud-init.ssh-keys.ann", "ann:ssh-rsa AAAA"),
            ("user.user-data", user_data),
        ],
    );
    host.serve(&[&one]).await;
    let (status, values) = host.get(&one, "/1.0/config?recursion=1").await;
    let keys: Vec<_> = values.as_object().unwrap().keys().collect();
    assert_eq!(status, 200);
    assert_eq!(
        keys,
        ["cloud-init.vendor-data", "user.odd%key", "user.user-data"]
    );
    assert_eq!(values["user.odd%key"], "ä€\n");
    for other in ["", "?recursion=0", "?x=recursion=1", "?recursion=10"] {
        let (_, paths) = host.get(&one, &format!("/1.0/config{other}")).await;
        assert_eq!(paths[2], "/1.0/config/user.user-data", "{other}");
    }
    host.set("one", &[("security.devlxd", "false")]);
    let is_refused = async || host.get(&one, "/1.0/config?recursion=1").await.0 == 403;
    super::until(is_refused).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn thousand_keys_and_a_mebibyte_take_five_requests() {
    let mut host = Host::start();
    let one = Machine::new(&host, "one");
    let user_data = format!("#cloud-config\n# {}\n", "é".repeat(512 * 1024));
    let keys: Vec<_> = (0..1000)
        .map(|number| format!("user.key{number}"))
        .collect();
    let mut values: Vec<_> = keys.iter().map(|key| (key.as_str(), "value ☃")).collect();
    values.push(("cloud-init.user-data", &user_data));
    host.set("one", &values);
    serve_plain(&mut host, &one).await;
    for (has_query, expected) in [(false, 1006), (true, 5)] {
        let way = Way::to(&one, has_query);
        let agent = agent_over(&way).await;
        assert_eq!(way.requests().await, expected);
        let guest = RawClient::new(&agent.guest_socket());
        let listed = guest.get("/1.0/config").await.body;
        assert_eq!(listed.as_array().unwrap().len(), 1001);
        let path = "/1.0/config/cloud-init.user-data";
        assert_eq!(guest.get(path).await.body, json!(user_data));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn values_too_large_for_one_reply_are_fetched_one_by_one() {
    let mut host = Host::start();
    let one = Machine::new(&host, "one");
    let large = "x".repeat(3 << 20);
    let keys = ["user.a", "user.b", "user.c"];
    host.set("one", &keys.map(|key| (key, large.as_str())));
    serve_plain(&mut host, &one).await;
    let way = Way::to(&one, true);
    let agent = agent_over(&way).await;
    assert_eq!(way.requests().await, 5 + keys.len());
    let guest = RawClient::new(&agent.guest_socket());
    let listed = guest.get("/1.0/config").await.body;
    assert_eq!(listed, json!(keys.map(|key| format!("/1.0/config/{key}"))));
}
