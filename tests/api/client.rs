//! The host library against the agent.

use std::{
    future::pending,
    path::{Path, PathBuf},
    time::Duration,
};

use harness::{RawClient, TestAgent, TestFolder};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};
use vsock_agent_client::{
    Client, ClientError, ConnectError, Endpoint, Exec, Security, TerminalSize, Timeouts,
};

fn start() -> (TestAgent, Client) {
    let agent = TestAgent::start();
    let client = Client::new(agent.endpoint().parse().unwrap(), Security::Plain);
    (agent, client)
}

#[tokio::test]
async fn client_runs_a_command_with_output_and_status() {
    let (_agent, client) = start();
    let script = "echo out; echo err >&2; exit 7";
    let output = client.exec("sh", ["-c", script]).output().await.unwrap();
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(output.status.code, 7);
    assert!(output.status.output_complete);
}

#[tokio::test]
async fn client_error_has_the_agents_text() {
    let (_agent, client) = start();
    let error = client
        .exec("id", [""; 0])
        .user("nobody-here")
        .output()
        .await
        .unwrap_err();
    let ClientError::Agent {
        status: 400, text, ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert!(text.contains("nobody-here"), "{text}");
}

#[tokio::test]
async fn missing_agent_is_a_connect_error() {
    let folder = TestFolder::new("client");
    let endpoint = format!("unix:{}", folder.path().join("no.sock").display());
    let patience = std::time::Duration::from_millis(300);
    let client = Client::with_timeouts(
        endpoint.parse().unwrap(),
        Security::Plain,
        Timeouts::default().with_connect(patience),
    );
    let error = client.server_info().await.unwrap_err();
    assert!(matches!(error, ClientError::Connect { .. }), "{error:?}");
}

#[tokio::test]
async fn client_waits_for_an_agent_that_starts_late() {
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

#[tokio::test]
async fn aborted_stdin_is_not_end_of_file() {
    let (agent, client) = start();
    let whole = agent.folder().join("whole");
    for terminal in [false, true] {
        let script = "stty raw 2>/dev/null; echo up; cat >/dev/null; echo > $0";
        let mut exec = client.exec("sh", ["-c", script, whole.to_str().unwrap()]);
        if terminal {
            exec = exec.tty(TerminalSize {
                columns: 80,
                lines: 25,
            });
        }
        let mut session = exec.start().await.unwrap();
        let mut output = session.take_stdout().unwrap();
        output.read_exact(&mut [0; 2]).await.unwrap();
        let mut stdin = session.take_stdin().unwrap();
        stdin.write_all(b"half").await.unwrap();
        stdin.abort();
        let error = session.wait().await.unwrap_err();
        assert!(
            matches!(error, ClientError::IncompleteInput { .. }),
            "{terminal}: {error:?}"
        );
        assert!(!whole.exists());
    }
}

/// Long enough for a machine that does other things too, and far from the 30 s and more that an
/// agent takes by itself.
const SOON: Duration = Duration::from_secs(15);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(SOON, what).await.expect("it ends soon")
}

#[tokio::test]
async fn command_that_cannot_start_has_a_status_and_a_reason() {
    let (_agent, client) = start();
    let folder = TestFolder::new("client");
    let plain_file = folder.path().join("file");
    std::fs::write(&plain_file, "no program").unwrap();
    let plain_file = plain_file.to_str().unwrap();
    for (exec, code) in [
        (client.exec("no-such-program", [""; 0]), 127),
        (client.exec(plain_file, [""; 0]), 126),
        (client.exec("true", [""; 0]).cwd("/no/such/folder"), 126),
    ] {
        let output = soon(exec.clone().output()).await.unwrap();
        assert_eq!(output.status.code, code, "{output:?}");
        assert!(output.status.failure.is_some() && !output.status.success());
        assert_eq!(
            (&output.stdout[..], &output.stderr[..]),
            (&b""[..], &b""[..])
        );

        // Whoever reads the streams before the status gets their end.
        let mut session = exec.clone().start().await.unwrap();
        let mut bytes = Vec::new();
        let mut stdout = session.take_stdout().unwrap();
        soon(stdout.read_to_end(&mut bytes)).await.unwrap();
        let mut stderr = session.take_stderr().unwrap();
        soon(stderr.read_to_end(&mut bytes)).await.unwrap();
        assert_eq!(soon(session.wait()).await.unwrap().code, code);
        assert_eq!(bytes, b"");

        let size = TerminalSize {
            columns: 80,
            lines: 25,
        };
        let output = soon(exec.tty(size).output()).await.unwrap();
        assert_eq!(output.status.code, code, "{output:?}");
    }
}

#[tokio::test]
async fn command_exceeding_the_output_limit_is_ended() {
    let (_agent, client) = start();
    let script = "echo first >&2; sleep 1; exec yes";
    let endless = client.exec("sh", ["-c", script]).output_limit(1000);
    let error = soon(endless.output()).await.unwrap_err();
    let ClientError::OutputLimit {
        stream,
        limit: 1000,
        stdout,
        stderr,
        ..
    } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(stream, "standard output");
    assert_eq!(stdout, b"y\n".repeat(500));
    assert_eq!(stderr, b"first\n");
    soon(nothing_runs(&client)).await;

    // What is just as long as the limit is no more than it.
    let output = client.exec("printf", ["12345"]).output_limit(5);
    assert_eq!(soon(output.output()).await.unwrap().stdout, b"12345");
}

/// Waits until the agent has no operation that runs.
async fn nothing_runs(client: &Client) {
    while client
        .operations()
        .await
        .unwrap()
        .iter()
        .any(|operation| !operation.is_final())
    {
        sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn timed_out_command_is_not_a_success() {
    let (_agent, client) = start();
    let script = "trap 'exit 0' HUP TERM; sleep 60 & wait";
    let exec = client.exec("sh", ["-c", script]);
    let output = soon(exec.timeout(Duration::from_secs(1)).output())
        .await
        .unwrap();
    assert_eq!(output.status.code, 0, "{output:?}");
    assert!(output.status.timed_out && !output.status.success());
}

#[tokio::test]
async fn time_limit_below_a_second_and_signal_delay() {
    let (_agent, client) = start();
    // SIGKILL alone ends it.
    let script = "trap 'echo got it' HUP TERM; while :; do sleep 0.1; done";
    let start = Instant::now();
    let exec = client.exec("sh", ["-c", script]);
    let times = |exec: Exec, limit, pause| {
        let exec = exec.timeout(Duration::from_millis(limit));
        exec.kill_pause(Duration::from_millis(pause))
    };
    let output = soon(times(exec.clone(), 300, 400).output()).await.unwrap();
    let took = start.elapsed();
    assert_eq!(output.status.signal, Some(9), "{output:?}");
    assert!(took >= Duration::from_millis(1100), "{took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert_eq!(output.stdout, b"got it\ngot it\n");
    // A whole second would be enough for it.
    let short = client.exec("sh", ["-c", "sleep 0.8; echo late"]);
    let short = short.timeout(Duration::from_millis(50));
    let output = soon(short.output()).await.unwrap();
    assert!(
        output.status.timed_out && output.stdout.is_empty(),
        "{output:?}"
    );
    // No time to do anything about it.
    let output = soon(times(exec, 300, 0).output()).await.unwrap();
    assert_eq!(output.status.signal, Some(9), "{output:?}");
}

#[tokio::test]
async fn dropped_start_ends_its_command() {
    let (agent, client) = start();
    client.server_info().await.unwrap();
    // Dropped at each of its steps.
    for steps in 0..40 {
        let mut starting = Box::pin(client.exec("sleep", ["600"]).start());
        for _ in 0..steps {
            tokio::select! {
                biased;
                session = &mut starting => drop(session.unwrap()),
                () = tokio::task::yield_now() => continue,
            }
            break;
        }
    }
    soon(client.settle()).await;
    soon(nothing_runs(&client)).await;
    drop(agent);
}

#[tokio::test]
async fn terminal_delivers_end_of_input_before_it_is_read() {
    let (_agent, client) = start();
    let size = TerminalSize {
        columns: 80,
        lines: 25,
    };
    let script = "yes | head -c 3000000; cat; echo over";
    let mut session = client
        .exec("sh", ["-c", script])
        .tty(size)
        .start()
        .await
        .unwrap();
    drop(session.take_stdin());
    // Long enough for all buffers to be full.
    sleep(Duration::from_secs(7)).await;
    let mut bytes = Vec::new();
    let mut stdout = session.take_stdout().unwrap();
    let reading = async {
        stdout.read_to_end(&mut bytes).await.unwrap();
    };
    let (status, ()) = soon(async { tokio::join!(session.wait(), reading) }).await;
    assert_eq!(status.unwrap().code, 0);
    assert!(bytes.ends_with(b"over\r\n"));
}

#[tokio::test]
async fn ended_event_stream_repeats_its_error() {
    let (agent, client) = start();
    for kind in ["operations", "operation,config", "a&b=c d", ""] {
        let refused = client.events(&[kind]).await.unwrap_err();
        assert!(matches!(refused, ClientError::Local { .. }), "{refused:?}");
    }
    let mut events = client.events(&["operation"]).await.unwrap();
    assert!(
        client
            .exec("true", [""; 0])
            .output()
            .await
            .unwrap()
            .status
            .success()
    );
    assert_eq!(
        soon(events.next()).await.unwrap().unwrap().kind,
        "operation"
    );
    drop(agent);
    let first = loop {
        match soon(events.next()).await {
            Ok(Some(_)) => {}
            ended => break ended.map_err(|error| error.to_string()),
        }
    };
    let again = soon(events.next()).await.map_err(|error| error.to_string());
    assert_eq!(first, again);
}

/// A socket that accepts connections and closes them, until it leads to an agent: as monitors do
/// that map ports to sockets, while the guest boots. It ends when it is dropped.
struct MappedSocket {
    lead: watch::Sender<Option<PathBuf>>,
    /// While this is true nothing moves on connections that were made.
    stall: watch::Sender<bool>,
    refused: watch::Receiver<usize>,
    _task: JoinSet<()>,
}

impl MappedSocket {
    fn new(path: &Path) -> Self {
        let (lead, leads) = watch::channel(None::<PathBuf>);
        let (refuse, refused) = watch::channel(0);
        let (stall, stalled) = watch::channel(false);
        let listener = UnixListener::bind(path).unwrap();
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let Some(agent) = leads.borrow().clone() else {
                    refuse.send_modify(|count| *count += 1);
                    continue;
                };
                let mut stalled = stalled.clone();
                connections.spawn(async move {
                    let mut far = UnixStream::connect(agent).await.unwrap();
                    let stalls = async { drop(stalled.wait_for(|stalled| *stalled).await) };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        () = stalls => pending().await,
                    }
                });
            }
        });
        Self {
            lead,
            stall,
            refused,
            _task: task,
        }
    }

    /// Leads to `agent` when some connections have been closed.
    async fn lead_late(&mut self, agent: PathBuf) {
        let closed = *self.refused.borrow() + 3;
        self.refused
            .wait_for(|count| *count >= closed)
            .await
            .unwrap();
        self.lead.send_replace(Some(agent));
    }
}

#[tokio::test]
async fn lost_event_stream_repeats_its_error() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("client");
    let path = folder.path().join("mapped.sock");
    let mapped = MappedSocket::new(&path);
    mapped.lead.send_replace(Some(agent.socket()));
    let endpoint = format!("unix:{}", path.display()).parse().unwrap();
    let client = Client::new(endpoint, Security::Plain);
    let mut events = client.events(&[]).await.unwrap();
    drop(mapped);
    for _ in 0..2 {
        let error = soon(events.next()).await.unwrap_err();
        assert!(
            matches!(error, ClientError::ConnectionLost { .. }),
            "{error:?}"
        );
    }
}

#[tokio::test]
async fn endpoint_that_accepts_and_closes_is_retried() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("client");
    let path = folder.path().join("mapped.sock");
    let mut mapped = MappedSocket::new(&path);
    let endpoint: Endpoint = format!("unix:{}", path.display()).parse().unwrap();
    let client = Client::new(endpoint.clone(), Security::Plain);
    let info = client.server_info();
    soon(async { tokio::join!(info, mapped.lead_late(agent.socket())) })
        .await
        .0
        .unwrap();

    // A command, which must not run twice, of a client that knows its agent.
    mapped.lead.send_replace(None);
    let marks = folder.path().join("marks");
    let script = format!("echo x >> {}", marks.display());
    let command = client.exec("sh", ["-c", &script[..]]).output();
    let (output, ()) =
        soon(async { tokio::join!(command, mapped.lead_late(agent.socket())) }).await;
    assert!(output.unwrap().status.success());
    assert_eq!(std::fs::read(&marks).unwrap(), b"x\n");

    // A file session.
    mapped.lead.send_replace(None);
    let (sftp, ()) =
        soon(async { tokio::join!(client.sftp(), mapped.lead_late(agent.socket())) }).await;
    sftp.unwrap();

    // No longer than asked.
    mapped.lead.send_replace(None);
    let patience = Duration::from_millis(500);
    let client = Client::with_timeouts(
        endpoint,
        Security::Plain,
        Timeouts::default().with_connect(patience),
    );
    let error = soon(client.server_info()).await.unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::Connect {
                attempts: 2..,
                source: ConnectError::ClosedUnanswered(_),
                ..
            }
        ),
        "{error:?}"
    );
}

/// A socket at which each connection is told `greeting`, and then nothing.
fn greeter(path: &Path, greeting: &'static [u8]) -> JoinSet<()> {
    let listener = UnixListener::bind(path).unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut kept = Vec::new();
        loop {
            let (mut connection, _) = listener.accept().await.unwrap();
            let _ = connection.write_all(greeting).await;
            kept.push(connection);
        }
    });
    task
}

#[tokio::test]
async fn ssh_banner_is_a_protocol_error() {
    let folder = TestFolder::new("client");
    let path = folder.path().join("ssh.sock");
    let _server = greeter(&path, b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n");
    let endpoint = format!("unix:{}", path.display()).parse().unwrap();
    let client = Client::new(endpoint, Security::Plain);
    for _ in 0..20 {
        let error = soon(client.server_info()).await.unwrap_err();
        assert!(matches!(error, ClientError::Protocol { .. }), "{error:?}");
        let error = soon(client.sftp()).await.unwrap_err();
        assert!(matches!(error, ClientError::Protocol { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn silent_agent_is_detected_within_the_timeout() {
    let folder = TestFolder::new("client");
    let path = folder.path().join("silent.sock");
    let _server = greeter(&path, b"");
    let endpoint = format!("unix:{}", path.display()).parse().unwrap();
    let timeouts = Timeouts::default().with_silence(Duration::from_secs(1));
    let client = Client::with_timeouts(endpoint, Security::Plain, timeouts);
    let error = soon(client.server_info()).await.unwrap_err();
    assert!(matches!(error, ClientError::Silent { .. }), "{error:?}");
    let error = soon(client.sftp()).await.unwrap_err();
    assert!(matches!(error, ClientError::Silent { .. }), "{error:?}");
}

#[tokio::test]
async fn agent_that_stalls_during_a_command_is_detected() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("client");
    let path = folder.path().join("mapped.sock");
    let mapped = MappedSocket::new(&path);
    mapped.lead.send_replace(Some(agent.socket()));
    let timeouts = Timeouts::default().with_silence(Duration::from_secs(2));
    let endpoint = format!("unix:{}", path.display()).parse().unwrap();
    let client = Client::with_timeouts(endpoint, Security::Plain, timeouts);
    let sftp = client.sftp().await.unwrap();
    let mut session = client.exec("sleep", ["600"]).start().await.unwrap();
    let mut stdout = session.take_stdout().unwrap();
    let output = client.exec("sleep", ["600"]);
    let output = output.output();
    tokio::pin!(output);
    assert!(timeout(Duration::from_secs(1), &mut output).await.is_err());
    mapped.stall.send_replace(true);
    let mut bytes = Vec::new();
    let (read, waited, output, listed) = soon(async {
        tokio::join!(
            stdout.read_to_end(&mut bytes),
            session.wait(),
            output,
            sftp.stat("/")
        )
    })
    .await;
    read.unwrap_err();
    for error in [waited.unwrap_err(), output.unwrap_err()] {
        assert!(
            matches!(error, ClientError::ConnectionLost { .. }),
            "{error:?}"
        );
    }
    let error = listed.unwrap_err();
    assert!(matches!(error, ClientError::Silent { .. }), "{error:?}");
}

/// Leads to an agent, and lets no control socket be joined before its command has ended.
fn holds_back_control(path: &Path, agent: PathBuf) -> JoinSet<()> {
    let listener = UnixListener::bind(path).unwrap();
    let (started, operation) = watch::channel(None::<(String, String)>);
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let (agent, started, operation) = (agent.clone(), started.clone(), operation.clone());
            connections.spawn(async move {
                let request = read_some(&mut near).await;
                let known = operation.borrow().clone();
                let is_asked_for = |secret: &str| text(&request).contains(secret);
                if let Some((id, _)) = known.filter(|(_, secret)| is_asked_for(secret)) {
                    let client = RawClient::new(&agent);
                    client.get(&format!("/1.0/operations/{id}/wait")).await;
                }
                let mut far = UnixStream::connect(agent).await.unwrap();
                far.write_all(&request).await.unwrap();
                let answer = read_some(&mut far).await;
                let field = |name| {
                    Some(
                        text(&answer)
                            .split_once(name)?
                            .1
                            .split_once('"')?
                            .0
                            .to_owned(),
                    )
                };
                if let Some(secret) = field(r#""control":""#) {
                    started.send_replace(Some((field(r#""id":""#).unwrap(), secret)));
                }
                near.write_all(&answer).await.unwrap();
                // It ends as either side does.
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
    });
    task
}

/// What is there to be read: of a short request or answer all of it.
async fn read_some(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16 * 1024);
    stream.read_buf(&mut bytes).await.unwrap();
    bytes
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn command_that_ends_before_its_control_socket_is_joined() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("client");
    let path = folder.path().join("late.sock");
    let _late = holds_back_control(&path, agent.socket());
    let endpoint = format!("unix:{}", path.display()).parse().unwrap();
    let client = Client::new(endpoint, Security::Plain);
    client.server_info().await.unwrap();
    let session = soon(client.exec("sh", ["-c", "echo out; exit 3"]).start()).await;
    let mut session = session.unwrap();
    let control = session.control();
    let mut output = String::new();
    let mut stdout = session.take_stdout().unwrap();
    soon(stdout.read_to_string(&mut output)).await.unwrap();
    assert_eq!(output, "out\n");
    assert_eq!(soon(session.wait()).await.unwrap().code, 3);
    let error = soon(control.signal(2)).await.unwrap_err();
    assert!(
        matches!(error, ClientError::ConnectionLost { .. }),
        "{error:?}"
    );
}
