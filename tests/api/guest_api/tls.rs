//! The agent and its host know each other.

use std::{fs, path::Path};

use harness::{HostData, MockHost, Pair, TestAgent};
use serde_json::json;
use vsock_agent::Security;

use super::{answers, configured, eventually_answers, put};

/// An agent with TLS whose `server.crt` has the certificates of `trusted`.
fn start(own: &Pair, trusted: &[&Pair]) -> TestAgent {
    configured(|config| {
        let folder = config.guest.sockets[0]
            .parent()
            .map(Path::to_owned)
            .unwrap();
        own.write_agent(&folder, trusted);
        config.security = Security::Tls(folder);
    })
}

fn listen(agent: &TestAgent, host: &Pair, known: &Pair) -> MockHost {
    let socket = agent.folder().join("host.sock");
    MockHost::start_tls(&socket, HostData::default(), host, Some(known))
}

#[tokio::test]
async fn host_is_verified_by_the_identity_certificates() {
    let (own, host) = (Pair::lxd(), Pair::lxd());
    let agent = start(&own, &[&Pair::lxd(), &host]);
    let _host = listen(&agent, &host, &own);
    eventually_answers(&agent.guest_socket()).await;
}

#[tokio::test]
async fn unknown_host_is_refused() {
    let (own, host) = (Pair::lxd(), Pair::lxd());
    let mut agent = start(&own, &[&host]);
    let other = listen(&agent, &Pair::lxd(), &own);
    // The start waits as long as it may, and every try within that fails.
    agent.ready().await;
    assert!(!answers(&agent.guest_socket()).await);
    assert!(other.log().is_empty());
    drop(other);
    let _host = listen(&agent, &host, &own);
    eventually_answers(&agent.guest_socket()).await;
}

#[tokio::test]
async fn config_share_pins_the_host_certificate() {
    let (own, host) = (Pair::lxd(), Pair::lxd());
    let mut agent = configured(|config| {
        let share = &config.share.as_ref().unwrap().folder;
        fs::create_dir(share).unwrap();
        own.write_agent(share, &[&Pair::lxd()]);
        let certificate = &host.certificate;
        let said = json!({ "cid": 2, "port": 8444, "certificate": certificate, "devlxd": true });
        fs::write(share.join("agent.conf"), said.to_string()).unwrap();
        config.security = Security::Tls(share.clone());
    });
    let _host = listen(&agent, &host, &own);
    agent.ready().await;
    assert!(answers(&agent.guest_socket()).await);
}

#[tokio::test]
async fn put_server_replaces_the_pinned_host_certificate() {
    let agent = configured(|_| {});
    let (right, wrong) = (Pair::expired(), Pair::lxd());
    let socket = agent.folder().join("host.sock");
    let host = MockHost::start_tls(&socket, HostData::default(), &right, None);
    put(&agent, &wrong.certificate, true).await;
    put(&agent, &right.certificate, true).await;
    eventually_answers(&agent.guest_socket()).await;
    assert_eq!(host.log()[0], "GET /1.0");
}
