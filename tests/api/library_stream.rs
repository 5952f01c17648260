//! The host library over HTTP/2: one connection for all, and what a lost one leaves. Where LXD's protocol
//! has a path of its own, both are tried.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use harness::{TestAgent, TestFolder, eventually, kinds};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{UnixListener, UnixStream},
    task::JoinSet,
    time::timeout,
};
use vsock_agent_client::{Client, ClientError, Security, Timeouts};

const PATIENCE: Duration = Duration::from_secs(30);

/// A socket that leads to an agent, and counts.
struct Proxy {
    accepted: Arc<AtomicUsize>,
    tasks: JoinSet<()>,
}

impl Proxy {
    fn start(socket: &Path, agent: &Path) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let accepted = Arc::<AtomicUsize>::default();
        let (count, agent) = (Arc::clone(&accepted), agent.to_owned());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::SeqCst);
                let agent = agent.clone();
                connections.spawn(async move {
                    if let Ok(mut far) = UnixStream::connect(agent).await {
                        // Either end may break off.
                        let _ = copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Self { accepted, tasks }
    }
}

fn client_of(socket: &Path) -> Client {
    let endpoint = format!("unix:{}", socket.display());
    Client::new(endpoint.parse().unwrap(), Security::Plain)
}

/// A client over HTTP/2, and one of LXD's protocol.
fn both(agent: &TestAgent) -> [Client; 2] {
    let endpoint = || agent.endpoint().parse().unwrap();
    [
        Client::new(endpoint(), Security::Plain),
        Client::over_http1(endpoint(), Security::Plain, Timeouts::default()),
    ]
}

#[tokio::test]
async fn two_hundred_commands_share_one_connection() {
    let agent = TestAgent::start();
    let socket = agent.folder().join("proxy");
    let proxy = Proxy::start(&socket, &agent.socket());
    let client = client_of(&socket);
    client.server_info().await.unwrap();
    let commands = (0..200).map(async |number: u32| {
        let text = number.to_string();
        let output = client.exec("echo", [&text]).output().await.unwrap();
        assert_eq!(output.stdout, format!("{number}\n").into_bytes());
    });
    join_all(commands).await;
    // The first asks whether the agent speaks HTTP/2.
    assert_eq!(proxy.accepted.load(Ordering::SeqCst), 2);
}

/// More than 1,024, after which a connection with a late frame for each command would end.
#[tokio::test(flavor = "multi_thread")]
async fn one_connection_lives_through_thousands_of_commands() {
    let agent = TestAgent::start();
    let socket = agent.folder().join("proxy");
    let proxy = Proxy::start(&socket, &agent.socket());
    let client = client_of(&socket);
    client.server_info().await.unwrap();
    let (_, kind) = kinds::ALL
        .iter()
        .find(|(name, _)| *name == "stderr")
        .unwrap();
    kinds::repeat(3000, 50, |run| kind(client.clone(), run)).await;
    assert_eq!(proxy.accepted.load(Ordering::SeqCst), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_of_the_agent_the_next_call_works() {
    let mut agent = TestAgent::start();
    let folder = TestFolder::new("restart");
    let socket = folder.path().join("sock");
    std::os::unix::fs::symlink(agent.socket(), &socket).unwrap();
    let client = client_of(&socket);
    let mut session = client.exec("sleep", ["1000"]).start().await.unwrap();
    agent.stop();
    let agent = TestAgent::start();
    std::fs::remove_file(&socket).unwrap();
    std::os::unix::fs::symlink(agent.socket(), &socket).unwrap();
    let ended = timeout(PATIENCE, session.wait()).await.unwrap();
    assert!(
        !matches!(&ended, Ok(status) if status.success()),
        "{ended:?}"
    );
    let output = client.exec("echo", ["again"]).output().await.unwrap();
    assert_eq!(output.stdout, b"again\n");
}

#[tokio::test]
async fn a_lost_connection_fails_the_command_and_runs_it_once() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("once");
    let marks = folder.path().join("marks");
    for round in 0..20 {
        let socket = folder.path().join(format!("proxy{round}"));
        let mut proxy = Proxy::start(&socket, &agent.socket());
        let client = client_of(&socket);
        client.exec("true", [""; 0]).output().await.unwrap();
        let script = format!("echo {round} >>{}; exec sleep 1000", marks.display());
        let command = client.exec("sh", ["-c", &script]).output();
        let breaks = async {
            let text = format!("{round}\n");
            // Before the request is sent, while it is, and after the command has run.
            match round % 4 {
                3 => {
                    let is_there = async || {
                        std::fs::read_to_string(&marks).is_ok_and(|read| read.ends_with(&text))
                    };
                    assert!(eventually(PATIENCE, is_there).await);
                }
                yields => {
                    for _ in 0..yields * 3 {
                        tokio::task::yield_now().await;
                    }
                }
            }
            proxy.tasks.shutdown().await;
        };
        let (ended, ()) = tokio::join!(timeout(PATIENCE, command), breaks);
        let error = ended.unwrap().unwrap_err();
        assert!(
            matches!(
                error,
                ClientError::ConnectionLost { .. } | ClientError::Connect { .. }
            ),
            "{error:?}"
        );
    }
    let marks = std::fs::read_to_string(&marks).unwrap();
    let mut lines: Vec<_> = marks.lines().collect();
    let all = lines.len();
    lines.dedup();
    assert_eq!(lines.len(), all, "{marks}");
}

#[tokio::test]
async fn a_get_is_made_again_when_its_connection_breaks() {
    let agent = TestAgent::start();
    let socket = agent.folder().join("proxy");
    let mut proxy = Proxy::start(&socket, &agent.socket());
    let client = client_of(&socket);
    let mut session = client.exec("sleep", ["1000"]).start().await.unwrap();
    let id = session.operation();
    let waiting = client.wait_operation(id, Some(Duration::from_secs(5)));
    let again = async {
        proxy.tasks.shutdown().await;
        std::fs::remove_file(&socket).unwrap();
        proxy = Proxy::start(&socket, &agent.socket());
    };
    let (operation, ()) = tokio::join!(timeout(PATIENCE, waiting), again);
    assert_eq!(operation.unwrap().unwrap().id, id);
    assert!(proxy.accepted.load(Ordering::SeqCst) > 0);
    session.wait().await.unwrap_err();
}

#[tokio::test]
async fn a_command_whose_reader_is_dropped_goes_on() {
    let agent = TestAgent::start();
    for client in both(&agent) {
        let script = "head -c 5000000 /dev/zero; echo end >&2; exit 3";
        let mut session = client.exec("sh", ["-c", script]).start().await.unwrap();
        let mut stdout = session.take_stdout().unwrap();
        stdout.read_exact(&mut [0; 1000]).await.unwrap();
        drop(stdout);
        let mut errors = String::new();
        let mut stderr = session.take_stderr().unwrap();
        stderr.read_to_string(&mut errors).await.unwrap();
        assert_eq!(errors, "end\n");
        assert_eq!(session.wait().await.unwrap().code, 3);
    }
}

#[tokio::test]
async fn ten_mebibytes_come_back_as_they_were() {
    let agent = TestAgent::start();
    let data: Vec<u8> = (0..2_621_440_u32).flat_map(u32::to_be_bytes).collect();
    for client in both(&agent) {
        let output = client.exec("cat", [""; 0]).stdin(data.clone()).output();
        let output = output.await.unwrap();
        assert!(output.stdout == data, "{} bytes", output.stdout.len());
    }
}

#[tokio::test]
async fn a_dropped_session_ends_its_command_while_input_waits() {
    let agent = TestAgent::start();
    for client in both(&agent) {
        let mut session = client.exec("sleep", ["1000"]).start().await.unwrap();
        let id = session.operation();
        let mut stdin = session.take_stdin().unwrap();
        let full = async { while stdin.write_all(&[0; 4096]).await.is_ok() {} };
        let _ = timeout(Duration::from_millis(200), full).await;
        drop(session);
        let ended = client.wait_operation(id, None);
        let ended = timeout(PATIENCE, ended).await.unwrap().unwrap();
        assert_eq!(ended.metadata["signal"], serde_json::json!(1));
        let writing = stdin.write_all(&[0; 4096]);
        timeout(PATIENCE, writing).await.unwrap().unwrap_err();
    }
}
