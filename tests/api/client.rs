//! The host library against the agent.

use harness::{TestAgent, TestFolder};
use vsock_agent_client::{Client, ClientError, Security};

fn start() -> (TestAgent, Client) {
    let agent = TestAgent::start();
    let client = Client::new(agent.endpoint().parse().unwrap(), Security::Plain);
    (agent, client)
}

#[tokio::test]
async fn a_command_has_its_output_and_its_status() {
    let (_agent, client) = start();
    let script = "echo out; echo err >&2; exit 7";
    let output = client.exec("sh", ["-c", script]).output().await.unwrap();
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(output.status.code, 7);
    assert!(output.status.output_complete);
}

#[tokio::test]
async fn a_refusal_has_the_agents_words() {
    let (_agent, client) = start();
    let error = client
        .exec("id", [""; 0])
        .user("nobody-here")
        .output()
        .await
        .unwrap_err();
    let ClientError::Agent { status: 400, text } = error else {
        panic!("{error:?}")
    };
    assert!(text.contains("nobody-here"), "{text}");
}

#[tokio::test]
async fn an_agent_that_is_not_there_is_a_failure_to_connect() {
    let folder = TestFolder::new("client");
    let endpoint = format!("unix:{}", folder.path().join("no.sock").display());
    let patience = std::time::Duration::from_millis(300);
    let client = Client::with_connect_timeout(endpoint.parse().unwrap(), Security::Plain, patience);
    let error = client.server_info().await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error:?}");
}

#[tokio::test]
async fn an_agent_that_comes_late_is_waited_for() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("client");
    let late = folder.path().join("late.sock");
    let client = Client::new(
        format!("unix:{}", late.display()).parse().unwrap(),
        Security::Plain,
    );
    let info = client.server_info();
    let appear = async { std::os::unix::fs::symlink(agent.socket(), &late).unwrap() };
    let (info, ()) = tokio::join!(biased; info, appear);
    info.unwrap();
}
