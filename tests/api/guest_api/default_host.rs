//! A host that nobody has named, and that answers where it usually does, or not.

use std::{fs, path::Path, time::Duration};

use harness::{HostData, MockHost, Pair, TestAgent};
use serde_json::json;
use tokio::time::{Instant, timeout};
use vsock_agent::{CloudInit, Config, Security};

use super::{answers, put};

/// Less than the wait for data that are expected, and more than the look for a host.
const SOON: Duration = Duration::from_secs(8);

/// An agent that looks for its host on `host.sock`, where `start` may start one in time.
fn looking<H>(start: impl FnOnce(&Path, &mut Config) -> H) -> (TestAgent, H) {
    let mut host = None;
    let agent = TestAgent::configured(|config| {
        let socket = config.guest.sockets[0].with_file_name("host.sock");
        config.guest.default_host = Some(format!("unix:{}", socket.display()).parse().unwrap());
        host = Some(start(&socket, config));
    });
    (agent, host.unwrap())
}

/// Waits until the guest may go on, and it may not have waited for data.
async fn goes_on(agent: &mut TestAgent) {
    let start = Instant::now();
    timeout(SOON, agent.ready()).await.expect("it goes on");
    assert!(start.elapsed() < SOON);
    assert!(!agent.guest_socket().exists());
}

#[tokio::test]
async fn guest_waits_for_the_default_hosts_data() {
    let data = HostData {
        delay: Duration::from_millis(100),
        ..HostData::with(&[("user.a", "1")])
    };
    let (mut agent, host) = looking(|socket, _| MockHost::start(socket, data));
    agent.ready().await;
    assert!(answers(&agent.guest_socket()).await);
    // One look, and one fetch of everything.
    assert_eq!(host.log().len(), 1 + 6);
}

#[tokio::test]
async fn guest_does_not_wait_without_a_default_host() {
    let (mut agent, ()) = looking(|_, _| ());
    goes_on(&mut agent).await;
    put(&agent, "", false).await;
}

#[tokio::test]
async fn guest_waits_briefly_for_a_silent_default_host() {
    let data = HostData {
        delay: Duration::from_secs(3600),
        ..HostData::default()
    };
    let (mut agent, host) = looking(|socket, _| MockHost::start(socket, data));
    goes_on(&mut agent).await;
    assert_eq!(host.log(), ["GET /1.0"]);
}

#[tokio::test]
async fn guest_does_not_wait_for_a_default_host_without_data() {
    let mut data = HostData::default();
    data.failing.insert("/1.0".to_owned(), 403);
    let (mut agent, host) = looking(|socket, _| MockHost::start(socket, data));
    goes_on(&mut agent).await;
    assert_eq!(host.log(), ["GET /1.0"]);
}

#[tokio::test]
async fn default_host_must_match_the_identity() {
    let (own, host) = (Pair::lxd(), Pair::lxd());
    for (is_known, there) in [(true, &host), (false, &Pair::lxd())] {
        let (mut agent, there) = looking(|socket, config| {
            let folder = socket.parent().unwrap();
            own.write_agent(folder, &[&host]);
            config.security = Security::Tls(folder.to_owned());
            MockHost::start_tls(socket, HostData::default(), there, Some(&own))
        });
        if is_known {
            agent.ready().await;
            assert!(answers(&agent.guest_socket()).await);
        } else {
            goes_on(&mut agent).await;
            assert!(there.log().is_empty());
        }
    }
}

#[tokio::test]
async fn default_host_is_not_probed_when_configured_or_unused() {
    let said = |config: &mut Config| {
        let folder = &config.share.as_ref().unwrap().folder;
        fs::create_dir(folder).unwrap();
        let said = json!({ "cid": 2, "port": 1024, "certificate": "", "devlxd": false });
        fs::write(folder.join("agent.conf"), said.to_string()).unwrap();
    };
    let unwanted = |config: &mut Config| {
        config.guest.sockets.clear();
        config.guest.cloud_init = CloudInit::Off;
    };
    for change in [said, unwanted] {
        let (mut agent, host) = looking(|socket, config| {
            let host = MockHost::start(socket, HostData::default());
            change(config);
            host
        });
        agent.ready().await;
        assert!(host.log().is_empty());
    }
}
