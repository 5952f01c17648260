//! Mutual TLS: who gets in, and what the others get.

use harness::{Pair, RawClient, TestAgent};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use vsock_agent::Security;
use vsock_agent_client::{self as client, Client, ClientError, ConnectError, Identity};

/// An agent that trusts `trusted`, and its own pair.
fn start(trusted: &[&Pair]) -> (TestAgent, Pair) {
    start_as(Pair::lxd(), trusted)
}

fn start_as(pair: Pair, trusted: &[&Pair]) -> (TestAgent, Pair) {
    let agent = TestAgent::start_with(|folder| {
        pair.write_agent(folder, trusted);
        Security::Tls(folder.to_owned())
    });
    (agent, pair)
}

/// A client that presents `own` and expects the agent to present `pinned`.
fn connect(agent: &TestAgent, own: &Pair, pinned: &Pair) -> Client {
    let identity = Identity::from_pem(&own.identity_pem(pinned));
    let endpoint = agent.endpoint().parse().unwrap();
    Client::new(endpoint, client::Security::Tls(identity.unwrap()))
}

#[tokio::test]
async fn the_pinned_pair_gets_in() {
    let host = Pair::lxd();
    let (agent, pair) = start(&[&host]);
    let info = connect(&agent, &host, &pair).server_info().await.unwrap();
    assert_eq!(info.auth, "trusted");
}

#[tokio::test]
async fn each_of_several_trusted_clients_gets_in() {
    let (old, new) = (Pair::lxd(), Pair::lxd());
    let (agent, pair) = start(&[&old, &new]);
    connect(&agent, &old, &pair).server_info().await.unwrap();
    connect(&agent, &new, &pair).server_info().await.unwrap();
}

#[tokio::test]
async fn dates_do_not_matter() {
    let host = Pair::expired();
    let (agent, pair) = start_as(Pair::expired(), &[&host]);
    connect(&agent, &host, &pair).server_info().await.unwrap();
}

#[tokio::test]
async fn another_pair_is_refused_on_every_path() {
    let (host, other) = (Pair::lxd(), Pair::lxd());
    let (agent, pair) = start(&[&host]);
    let client = connect(&agent, &other, &pair);
    let error = client.server_info().await.unwrap_err();
    assert!(
        matches!(error, ClientError::IdentityRefused { .. }),
        "{error:?}"
    );
    let error = client.sftp().await.unwrap_err();
    assert!(
        matches!(error, ClientError::IdentityRefused { .. }),
        "{error:?}"
    );
    let error = client.exec("true", [""; 0]).start().await.unwrap_err();
    assert!(
        matches!(error, ClientError::IdentityRefused { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn the_right_certificate_without_its_key_is_refused() {
    let host = Pair::lxd();
    let (agent, pair) = start(&[&host]);
    let thief = Pair {
        certificate: host.certificate.clone(),
        ..Pair::lxd()
    };
    // The client's own library already sees that the two do not belong together; the agent must
    // not be the one to find out.
    Identity::from_pem(&thief.identity_pem(&pair)).unwrap_err();
    drop(agent);
}

#[tokio::test]
async fn an_agent_that_is_not_the_pinned_one_is_refused() {
    let host = Pair::lxd();
    let (agent, _) = start(&[&host]);
    let error = connect(&agent, &host, &Pair::lxd())
        .server_info()
        .await
        .unwrap_err();
    let ClientError::Connect { source, .. } = error else {
        panic!("{error:?}")
    };
    assert!(matches!(source, ConnectError::WrongAgent), "{source:?}");
}

#[tokio::test]
async fn a_plain_client_gets_nothing() {
    let host = Pair::lxd();
    let (agent, _) = start(&[&host]);
    let mut stream = RawClient::new(&agent.socket()).connect().await;
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut reply = Vec::new();
    // A reset is as good an end as any.
    let _ = stream.read_to_end(&mut reply).await;
    assert!(
        !String::from_utf8_lossy(&reply).contains("HTTP"),
        "{reply:?}"
    );
}

#[tokio::test]
async fn client_without_a_certificate_is_refused() {
    let host = Pair::lxd();
    let (agent, _) = start(&[&host]);
    let output = tokio::process::Command::new("openssl")
        .args(["s_client", "-quiet", "-ign_eof", "-tls1_3", "-unix"])
        .arg(agent.socket())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn();
    let mut openssl = output.expect("openssl is missing: apt-get install openssl");
    let mut stdin = openssl.stdin.take().unwrap();
    stdin
        .write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let output = openssl.wait_with_output().await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.stdout.is_empty(),
        "{:?}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert!(said.contains("certificate required"), "{said}");
}
