//! When the sockets are there, and when the guest may go on booting.

use std::{fs, os::unix::fs::PermissionsExt, os::unix::net::UnixListener, time::Duration};

use futures_util::StreamExt;
use harness::{HostData, RawClient};
use serde_json::json;

use super::{answers, configured, eventually_answers, eventually_gone, host_of, put, start, until};

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// What all keys with their values are asked for by.
const WITH_VALUES: &str = "/1.0/config?recursion=1";

#[tokio::test]
async fn guest_api_socket_appears_after_all_data_is_fetched() {
    let mut agent = configured(|config| config.guest.ready_timeout = Some(PATIENCE));
    let mut data = HostData::with(&[("user.a", "1"), ("user.b", "2")]);
    // The devices are asked for last.
    data.failing.insert("/1.0/devices".to_owned(), 500);
    let host = host_of(&agent, data);
    let asked = || {
        let log = host.log();
        log.iter()
            .filter(|line| *line == "GET /1.0/devices")
            .count()
    };
    until(async || asked() >= 3).await;
    assert!(!agent.guest_socket().exists());
    host.change(|data| data.failing.clear());
    agent.ready().await;
    assert!(answers(&agent.guest_socket()).await);
}

#[tokio::test]
async fn guest_continues_without_host_and_gets_data_later() {
    let limit = Duration::from_millis(200);
    let mut agent = configured(|config| config.guest.ready_timeout = Some(limit));
    agent.ready().await;
    assert!(!agent.guest_socket().exists());
    let _host = host_of(&agent, HostData::default());
    eventually_answers(&agent.guest_socket()).await;
}

#[tokio::test]
async fn guest_does_not_wait_for_a_silent_host() {
    let limit = Duration::from_millis(200);
    let mut agent = configured(|config| config.guest.ready_timeout = Some(limit));
    let data = HostData {
        delay: Duration::from_secs(3600),
        ..HostData::default()
    };
    let host = host_of(&agent, data);
    until(async || !host.log().is_empty()).await;
    agent.ready().await;
    assert!(!agent.guest_socket().exists());
}

#[tokio::test]
async fn guest_without_a_host_does_not_wait() {
    let mut agent = harness::TestAgent::start();
    agent.ready().await;
    assert!(!agent.guest_socket().exists());
}

#[tokio::test]
async fn host_enables_and_disables_the_guest_api() {
    let (agent, _host, guest) = start(HostData::default()).await;
    let mut listening = guest.websocket("/1.0/events").await.unwrap();
    put(&agent, "", false).await;
    eventually_gone(&agent.guest_socket()).await;
    // Whoever listened is told to leave.
    while let Some(Ok(_)) = listening.next().await {}
    put(&agent, "", true).await;
    eventually_answers(&agent.guest_socket()).await;
}

#[tokio::test]
async fn guest_does_not_wait_for_a_host_that_disables_the_guest_api() {
    let mut agent = configured(|config| config.guest.ready_timeout = Some(PATIENCE));
    put(&agent, "", false).await;
    agent.ready().await;
    assert!(!agent.guest_socket().exists());
}

#[tokio::test]
async fn guest_does_not_wait_for_a_host_that_forbids_the_guest_api() {
    let mut agent = configured(|config| config.guest.ready_timeout = Some(PATIENCE));
    let mut data = HostData::default();
    data.failing.insert("/1.0".to_owned(), 403);
    let host = host_of(&agent, data);
    agent.ready().await;
    assert!(!agent.guest_socket().exists());
    host.change(|data| data.failing.clear());
    eventually_answers(&agent.guest_socket()).await;
}

/// A host that tells all keys at once.
fn telling(config: &[(&str, &str)]) -> HostData {
    HostData {
        tells_values: true,
        ..HostData::with(config)
    }
}

#[tokio::test]
async fn recursive_config_reply_replaces_requests_per_key() {
    let (_agent, host, guest) = start(telling(&[
        ("user.ä b/c?d", "1"),
        ("user.empty", ""),
        ("volatile.uuid", "secret"),
        ("cloud-init.ssh-keys.ann", "secret"),
    ]))
    .await;
    let path = "/1.0/config/user.%C3%A4%20b%2Fc%3Fd";
    assert_eq!(guest.get(path).await.body, 1);
    let listed = guest.get("/1.0/config").await.body;
    assert_eq!(listed, json!(["/1.0/config/user.ä b/c?d"]));
    let expected = [
        "/1.0",
        "/1.0/meta-data",
        WITH_VALUES,
        "/1.0/devices",
        "/1.0/meta-data",
    ];
    assert_eq!(host.log(), expected.map(|path| format!("GET {path}")));
}

#[tokio::test]
async fn refused_recursive_config_falls_back_to_requests_per_key() {
    for status in [400, 404, 405] {
        let mut data = telling(&[("user.a", "1"), ("user.b", "2")]);
        data.failing.insert(WITH_VALUES.to_owned(), status);
        let (_agent, host, guest) = start(data).await;
        assert_eq!(guest.get("/1.0/config/user.b").await.body, 2);
        assert_eq!(host.log()[3], "GET /1.0/config", "{status}");
        assert_eq!(host.log().len(), 8, "{status}");
    }
}

#[tokio::test]
async fn failing_or_non_text_host_replies_yield_no_data() {
    let failing = |data: &mut HostData| {
        data.failing.insert(WITH_VALUES.to_owned(), 500);
    };
    let number = |data: &mut HostData| {
        data.odd_values.insert("user.b".to_owned(), json!(2));
    };
    for spoil in [failing, number] {
        let mut agent = configured(|config| config.guest.ready_timeout = Some(PATIENCE));
        let mut data = telling(&[("user.a", "1")]);
        spoil(&mut data);
        let host = host_of(&agent, data);
        let asked = || {
            host.log()
                .iter()
                .filter(|line| line.ends_with(WITH_VALUES))
                .count()
        };
        until(async || asked() >= 3).await;
        assert!(!agent.guest_socket().exists());
        assert!(!host.log().iter().any(|line| line.contains("user.")));
        host.change(|data| {
            data.failing.clear();
            data.odd_values.clear();
        });
        agent.ready().await;
        assert!(answers(&agent.guest_socket()).await);
    }
}

#[tokio::test]
async fn host_that_closes_each_connection_works() {
    let data = HostData {
        closes: true,
        ..HostData::with(&[("user.a", "1"), ("user.b", "2")])
    };
    let (_agent, _host, guest) = start(data).await;
    assert_eq!(guest.get("/1.0/config/user.b").await.body, 2);
}

#[tokio::test]
async fn returning_host_is_queried_again() {
    let (agent, host, guest) = start(HostData::with(&[("user.a", "1")])).await;
    drop(host);
    // Nothing is lost while it is away.
    assert_eq!(guest.get("/1.0/config/user.a").await.body, 1);
    let _host = host_of(&agent, HostData::with(&[("user.a", "2")]));
    put(&agent, "", true).await;
    until(async || guest.get("/1.0/config/user.a").await.body == 2).await;
}

#[tokio::test]
async fn guest_api_socket_belongs_to_root_and_replaces_a_stale_one() {
    let mut agent = configured(|config| {
        let socket = config.guest.sockets[0].with_file_name("incus").join("sock");
        fs::create_dir(socket.parent().unwrap()).unwrap();
        // Dropped without being removed, as after a crash.
        drop(UnixListener::bind(&socket).unwrap());
        let other = socket.with_file_name("deeper").join("sock");
        config.guest.sockets = vec![socket, other];
    });
    let _host = host_of(&agent, HostData::with(&[("user.a", "1")]));
    agent.ready().await;
    let mode = |path: &str| {
        let path = agent.folder().join(path);
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    };
    assert_eq!(mode("incus/sock"), 0o600);
    assert_eq!(
        (mode("incus/deeper"), mode("incus/deeper/sock")),
        (0o755, 0o600)
    );
    // Programs made for LXD find it too.
    let guest = RawClient::new(&agent.folder().join("lxd/sock"));
    assert_eq!(guest.get("/1.0/config/user.a").await.body, 1);
    let sockets = ["incus/sock", "incus/deeper/sock"].map(|path| agent.folder().join(path));
    agent.stop();
    assert!(!sockets.iter().any(|socket| socket.exists()));
}
