//! Instance data, from a host that is written from LXD's API to a program in the guest.

mod cloud_init;
mod default_host;
mod events;
mod forward;
mod kept;
mod lifecycle;
mod routes;
mod tls;

use std::{path::Path, time::Duration};

use harness::{HostData, MockHost, RawClient, TestAgent, eventually};
use serde_json::json;
use tokio::net::UnixStream;
use vsock_agent::Config;

/// An agent whose host is on `host.sock` in its folder.
fn configured(change: impl FnOnce(&mut Config)) -> TestAgent {
    TestAgent::configured(|config| {
        let socket = config.guest.sockets[0].with_file_name("host.sock");
        config.guest.host = Some(format!("unix:{}", socket.display()).parse().unwrap());
        change(config);
    })
}

fn host_of(agent: &TestAgent, data: HostData) -> MockHost {
    MockHost::start(&agent.folder().join("host.sock"), data)
}

/// An agent and its host, and a program in the guest that finds the socket open.
pub(crate) async fn start(data: HostData) -> (TestAgent, MockHost, RawClient) {
    let mut agent = configured(|_| {});
    let host = host_of(&agent, data);
    agent.ready().await;
    assert!(answers(&agent.guest_socket()).await);
    let guest = RawClient::new(&agent.guest_socket());
    (agent, host, guest)
}

/// Whether somebody listens there.
async fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).await.is_ok()
}

/// Waits until something holds, far longer than it takes.
async fn until(holds: impl AsyncFnMut() -> bool) {
    assert!(eventually(Duration::from_secs(60), holds).await);
}

async fn eventually_answers(socket: &Path) {
    until(async || answers(socket).await).await;
}

async fn eventually_gone(socket: &Path) {
    until(async || !socket.exists()).await;
}

/// The host says where it is, and whether the guest may know anything.
async fn put(agent: &TestAgent, certificate: &str, devlxd: bool) {
    let body = json!({ "cid": 2, "port": 8444, "certificate": certificate, "devlxd": devlxd });
    let host = RawClient::new(&agent.socket());
    let reply = host.request("PUT", "/1.0", &body.to_string()).await;
    assert_eq!(reply.status, 200, "{reply:?}");
}
