//! The host library against the agent: what an orchestrator needs.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt;
use harness::{Pair, TestAgent, TestFolder, vm::paths};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};
use vsock_agent::Security as AgentSecurity;
use vsock_agent_client::{
    Client, ClientError, ConnectError, Endpoint, ErrorKind, ExecEvent, Identity, Method,
    OpenOptions, Received, Security, Timeouts,
    copy::{CopyError, CopyJob, CopyOptions, CopyUpdate, push},
    protocol::{event::NewEvent, server_info::ServerInfo, version::Family},
};

use crate::cli_files::build_example;

/// Long enough for a machine that does other things too, and far from every time limit of the agent.
const SOON: Duration = Duration::from_secs(15);

async fn soon<T>(what: impl Future<Output = T>) -> T {
    timeout(SOON, what).await.expect("it ends soon")
}

fn start() -> (TestAgent, Client) {
    start_as(|_| {})
}

fn start_as(change: impl FnOnce(&mut vsock_agent::Config)) -> (TestAgent, Client) {
    let agent = TestAgent::configured(change);
    let client = Client::new(agent.endpoint().parse().unwrap(), Security::Plain);
    (agent, client)
}

fn start_with_tls() -> (TestAgent, Client) {
    let (host, guest) = (Pair::lxd(), Pair::lxd());
    let agent = TestAgent::start_with(|folder| {
        guest.write_agent(folder, &[&host]);
        AgentSecurity::Tls(folder.to_owned())
    });
    let identity = Identity::from_pem(&host.identity_pem(&guest)).unwrap();
    let endpoint = agent.endpoint().parse().unwrap();
    let client = Client::new(endpoint, Security::Tls(identity));
    (agent, client)
}

#[tokio::test]
async fn state_and_metrics_are_read_from_agents_of_both_flavours() {
    for family in [Family::Lxd, Family::Incus] {
        let (_agent, client) = start_as(|config| config.family = family);
        let state = client.state().await.unwrap();
        assert!(state.memory.total > 0 && state.processes > 1, "{state:?}");
        assert!(state.network.contains_key("lo"), "{state:?}");
        assert_eq!(state.os_info.is_some(), family == Family::Incus);

        let metrics = client.metrics().await.unwrap();
        assert!(metrics.memory.memory_mem_total_bytes > 0, "{metrics:?}");
        assert!(metrics.network.contains_key("lo"), "{metrics:?}");
        assert!(metrics.cpu_seconds_total["cpu0"].cpu_seconds_idle > 0.0);

        let text = client.metrics_text().await.unwrap();
        assert!(text.contains("\n# TYPE "), "{text}");
    }
}

#[tokio::test]
async fn requests_without_a_method_have_status_and_json() {
    let (_agent, client) = start();
    let reply = client.request(Method::Get, "/1.0", None).await.unwrap();
    assert_eq!((reply.status, &reply.body["type"]), (200, &json!("sync")));
    let info: ServerInfo = reply.metadata().unwrap();
    assert_eq!(info, client.server_info().await.unwrap());

    let mut events = client.events(&["config"]).await.unwrap();
    let event = serde_json::to_value(NewEvent::new("config", json!({"key": 1}))).unwrap();
    let sent = client.request(Method::Post, "/1.0/events", Some(&event));
    assert_eq!(sent.await.unwrap().status, 200);
    let received = soon(events.next()).await.unwrap().unwrap();
    assert_eq!(received.metadata, json!({"key": 1}));

    let missing = client.request(Method::Delete, "/1.0/no-such", None);
    let missing = missing.await.unwrap();
    assert_eq!(missing.status, 404);
    let error = missing.metadata::<Value>().unwrap_err();
    assert!(
        matches!(error, ClientError::Agent { status: 404, .. }),
        "{error:?}"
    );
    for path in ["1.0", "/1.0\r\nX: y"] {
        let error = client.request(Method::Get, path, None).await.unwrap_err();
        assert!(matches!(error, ClientError::Local { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn upgraded_connection_speaks_the_protocol_that_was_asked_for() {
    let (_agent, client) = start();
    let mut stream = client.upgrade("/1.0/sftp", "sftp").await.unwrap();
    // SSH_FXP_INIT of version 3, and the beginning of SSH_FXP_VERSION.
    stream
        .write_all(&[0, 0, 0, 5, 1, 0, 0, 0, 3])
        .await
        .unwrap();
    let mut head = [0; 9];
    soon(stream.read_exact(&mut head)).await.unwrap();
    assert_eq!(head[4..], [2, 0, 0, 0, 3]);
    let error = client.upgrade("/1.0", "sftp").await.unwrap_err();
    assert!(
        matches!(
            error,
            ClientError::Protocol { .. } | ClientError::Agent { .. }
        ),
        "{error:?}"
    );
    let error = client.upgrade("/1.0/sftp", "a b").await.unwrap_err();
    assert!(matches!(error, ClientError::Local { .. }), "{error:?}");
}

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// Sends some bytes in both directions.
async fn exchange(near: &mut (impl AsyncRead + AsyncWrite + Unpin), far: &mut TcpStream) {
    near.write_all(b"question").await.unwrap();
    near.flush().await.unwrap();
    let mut bytes = [0; 8];
    soon(far.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"question");
    far.write_all(b"answered").await.unwrap();
    soon(near.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"answered");
}

#[tokio::test]
async fn forwarded_port_is_a_stream_of_bytes() {
    for (_agent, client) in [start(), start_with_tls()] {
        let (listener, port) = listen().await;
        let mut near = client.port_forward(port).await.unwrap();
        let mut far = listener.accept().await.unwrap().0;
        exchange(&mut near, &mut far).await;
        drop(near);
        assert_eq!(soon(far.read(&mut [0; 1])).await.unwrap(), 0);

        let mut near = client.port_forward_to("localhost", port).await.unwrap();
        let mut far = listener.accept().await.unwrap().0;
        exchange(&mut near, &mut far).await;
        drop(far);
        assert_eq!(soon(near.read(&mut [0; 1])).await.unwrap(), 0);

        drop(listener);
        let error = client.port_forward(port).await.unwrap_err();
        let ClientError::Agent {
            status: 500, text, ..
        } = &error
        else {
            panic!("{error:?}")
        };
        assert!(text.contains("refused"), "{text}");
    }
}

#[tokio::test]
async fn forwarded_port_over_tls_closes_one_direction() {
    let (_agent, client) = start_with_tls();
    let (listener, port) = listen().await;
    let mut near = client.port_forward(port).await.unwrap();
    let mut far = listener.accept().await.unwrap().0;
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut question = String::new();
    soon(far.read_to_string(&mut question)).await.unwrap();
    assert_eq!(question, "question");
    let answer = vec![7; 1024 * 1024];
    let mut read = Vec::new();
    let answering = async {
        far.write_all(&answer).await.unwrap();
        drop(far);
    };
    let (count, ()) = soon(async { tokio::join!(near.read_to_end(&mut read), answering) }).await;
    count.unwrap();
    assert!(read == answer, "{} bytes came", read.len());
}

#[tokio::test]
async fn waiting_until_an_agent_is_ready_ends_when_it_is() {
    let agent = TestAgent::start();
    let folder = TestFolder::new("library");
    let late = folder.path().join("late.sock");
    let endpoint = format!("unix:{}", late.display()).parse().unwrap();
    // The time limit of the client itself would be over at once.
    let timeouts = Timeouts::default().with_connect(Duration::ZERO);
    let client = Client::with_timeouts(endpoint, Security::Plain, timeouts);
    let appear = async { std::os::unix::fs::symlink(agent.socket(), &late).unwrap() };
    let ready = client.wait_ready(Duration::MAX);
    let (info, ()) = soon(async { tokio::join!(biased; ready, appear) }).await;
    assert_eq!(info.unwrap(), client.server_info().await.unwrap());
}

#[tokio::test]
async fn agent_that_is_not_ready_in_time_has_its_last_error() {
    let folder = TestFolder::new("library");
    let path = folder.path().join("agent.sock");
    let client = Client::new(
        format!("unix:{}", path.display()).parse().unwrap(),
        Security::Plain,
    );
    let limit = Duration::from_millis(400);
    let start = Instant::now();
    let source = connect_error(client.wait_ready(limit).await);
    assert!(start.elapsed() >= limit / 2, "{:?}", start.elapsed());
    let ConnectError::Io(source) = source else {
        panic!("{source:?}")
    };
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);

    // Whoever accepts and closes, or says nothing, is not ready either.
    let listener = UnixListener::bind(&path).unwrap();
    let closing = async {
        loop {
            drop(listener.accept().await.unwrap());
        }
    };
    let source = tokio::select! {
        info = soon(client.wait_ready(limit)) => connect_error(info),
        () = closing => unreachable!(),
    };
    assert!(
        matches!(source, ConnectError::ClosedUnanswered(_)),
        "{source:?}"
    );
    let source = connect_error(soon(client.wait_ready(limit)).await);
    assert!(matches!(source, ConnectError::TimedOut(_)), "{source:?}");
}

fn connect_error(info: Result<ServerInfo, ClientError>) -> ConnectError {
    match info.unwrap_err() {
        ClientError::Connect { source, .. } => source,
        error => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn errors_say_of_which_agent_they_are() {
    let (agent, client) = start();
    let endpoint: Endpoint = agent.endpoint().parse().unwrap();
    let sftp = client.sftp().await.unwrap();
    let empty = sftp
        .open("/proc/self/mem", OpenOptions::new().read(true))
        .await
        .unwrap();
    let mut ended = client.exec("true", [""; 0]).start().await.unwrap();
    let control = ended.control();
    let mut events = client.events(&[]).await.unwrap();
    let missing = || Path::new("/no/such").to_owned().into();
    let unknown = vsock_agent_client::protocol::operation::OperationId::from_random_bytes([1; 16]);
    let (options, source) = (CopyOptions::default(), [agent.socket().with_file_name("x")]);
    std::fs::write(&source[0], "x").unwrap();
    drop(ended.take_stdin());
    ended.wait().await.unwrap();
    let copied = match push(&sftp, &source, &missing(), &options, &()).await {
        Err(CopyError::Client(error)) => error,
        other => panic!("{other:?}"),
    };
    let errors = [
        client.operation(unknown).await.unwrap_err(),
        client
            .exec("true", [""; 0])
            .user("nobody-here")
            .output()
            .await
            .unwrap_err(),
        client
            .exec("yes", [""; 0])
            .output_limit(1)
            .output()
            .await
            .unwrap_err(),
        client
            .exec("true", [""; 0])
            .user(u32::MAX)
            .start()
            .await
            .unwrap_err(),
        control.signal(2).await.unwrap_err(),
        sftp.stat(missing()).await.unwrap_err(),
        sftp.open(missing(), OpenOptions::new().read(true))
            .await
            .unwrap_err(),
        sftp.read_dir(missing()).await.unwrap_err(),
        empty.read_at(0, 1).await.unwrap_err(),
        client.events(&["operations"]).await.unwrap_err(),
        client.upgrade("/1.0/sftp", "websocket").await.unwrap_err(),
        copied,
    ];
    for error in errors {
        assert_eq!(error.endpoint(), Some(&endpoint), "{error:?}");
    }

    // And when it is gone.
    let mut session = client.exec("sleep", ["600"]).start().await.unwrap();
    drop(session.take_stdin());
    drop(agent);
    let lost = loop {
        match soon(events.next()).await {
            Ok(Some(_)) => {}
            Ok(None) => break None,
            Err(error) => break Some(error),
        }
    };
    let errors = [
        Some(soon(session.wait()).await.unwrap_err()),
        Some(soon(sftp.stat("/")).await.unwrap_err()),
        lost,
    ];
    for error in errors.into_iter().flatten() {
        assert_eq!(error.endpoint(), Some(&endpoint), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Lost, "{error:?}");
    }
}

/// Leads `count` connections to an agent, and is gone then.
fn leads_some(path: &Path, agent: PathBuf, count: usize) -> JoinSet<()> {
    let listener = UnixListener::bind(path).unwrap();
    let path = path.to_owned();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        for number in 1..=count {
            let (mut near, _) = listener.accept().await.unwrap();
            if number == count {
                std::fs::remove_file(&path).unwrap();
            }
            let mut far = UnixStream::connect(&agent).await.unwrap();
            connections.spawn(async move {
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            });
        }
        drop(listener);
        while connections.join_next().await.is_some() {}
    });
    task
}

#[tokio::test]
async fn only_what_was_certainly_not_started_cannot_have_run() {
    let (agent, client) = start();
    let refused = client.exec("true", [""; 0]).user("nobody-here");
    let error = refused.start().await.unwrap_err();
    assert!(!error.may_have_run() && !error.is_retryable(), "{error:?}");

    // One connection is for what the agent is, one for the request, and none for the streams.
    let folder = TestFolder::new("library");
    let path = folder.path().join("leads.sock");
    let _leads = leads_some(&path, agent.socket(), 2);
    let timeouts = Timeouts::default().with_connect(Duration::from_millis(300));
    let endpoint = format!("unix:{}", path.display()).parse().unwrap();
    let client = Client::over_http1(endpoint, Security::Plain, timeouts);
    client.server_info().await.unwrap();
    let error = soon(client.exec("true", [""; 0]).start())
        .await
        .unwrap_err();
    assert!(error.may_have_run() && error.is_retryable(), "{error:?}");
    let cause = std::error::Error::source(&error).unwrap();
    assert!(cause.is::<ClientError>(), "{cause:?}");

    // Now there is nothing at all.
    let error = soon(client.exec("true", [""; 0]).start())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
    assert!(!error.may_have_run() && error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn waiting_for_a_command_can_be_given_up_and_taken_up_again() {
    let (agent, client) = start();
    let flag = agent.folder().join("flag");
    let script = "while ! test -e $0; do sleep 0.01; done; echo out; exit 3";
    let exec = client.exec("sh", ["-c", script]).arg(&flag);
    let mut session = exec.start().await.unwrap();
    let mut stdout = session.take_stdout().unwrap();
    for polls in 0..50 {
        assert_eq!(session.try_wait().unwrap(), None);
        let waiting = session.wait();
        tokio::pin!(waiting);
        for _ in 0..polls {
            tokio::select! {
                biased;
                status = &mut waiting => panic!("{status:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
    }
    std::fs::write(&flag, "").unwrap();
    let mut polls = 0;
    let status = soon(async {
        loop {
            tokio::select! {
                biased;
                status = session.wait() => break status.unwrap(),
                () = tokio::task::yield_now() => polls += 1,
            }
        }
    });
    assert_eq!(status.await.code, 3);
    assert!(polls > 0);
    assert_eq!(session.try_wait().unwrap().unwrap().code, 3);
    assert_eq!(session.wait().await.unwrap().code, 3);
    let mut output = String::new();
    stdout.read_to_string(&mut output).await.unwrap();
    assert_eq!(output, "out\n");
}

#[tokio::test]
async fn asking_whether_a_command_has_ended_drops_no_stream() {
    let (_agent, client) = start();
    let mut session = client.exec("cat", [""; 0]).start().await.unwrap();
    assert_eq!(session.try_wait().unwrap(), None);
    let mut stdin = session.take_stdin().unwrap();
    stdin.write_all(b"typed").await.unwrap();
    drop(stdin);
    let status = soon(async {
        loop {
            if let Some(status) = session.try_wait().unwrap() {
                break status;
            }
            tokio::task::yield_now().await;
        }
    });
    assert!(status.await.success());
    let mut output = String::new();
    let mut stdout = session.take_stdout().unwrap();
    stdout.read_to_string(&mut output).await.unwrap();
    assert_eq!(output, "typed");
}

#[tokio::test]
async fn killed_command_reports_its_signal_and_an_ended_one_its_status() {
    let (_agent, client) = start();
    let deaf = "trap '' HUP TERM; echo up; while :; do sleep 0.1; done";
    let mut session = client.exec("sh", ["-c", deaf]).start().await.unwrap();
    let mut up = [0; 3];
    let mut stdout = session.take_stdout().unwrap();
    soon(stdout.read_exact(&mut up)).await.unwrap();
    let status = soon(session.kill()).await.unwrap();
    assert_eq!((status.code, status.signal), (137, Some(9)));

    let mut session = client.exec("sh", ["-c", "exit 4"]).start().await.unwrap();
    assert_eq!(soon(session.wait()).await.unwrap().code, 4);
    assert_eq!(soon(session.kill()).await.unwrap().code, 4);
    assert_eq!(soon(session.terminate(SOON)).await.unwrap().code, 4);
}

#[tokio::test]
async fn terminated_command_may_end_by_itself_within_its_time() {
    let (_agent, client) = start();
    for (trap, grace, code) in [
        ("trap 'exit 5' TERM", SOON, 5),
        ("trap '' TERM", Duration::from_millis(300), 137),
        ("trap - TERM", SOON, 143),
    ] {
        let script = format!("{trap}; echo up; while :; do sleep 0.1; done");
        let mut session = client.exec("sh", ["-c", &script]).start().await.unwrap();
        let mut up = [0; 3];
        let mut stdout = session.take_stdout().unwrap();
        soon(stdout.read_exact(&mut up)).await.unwrap();
        let start = Instant::now();
        let status = soon(session.terminate(grace)).await.unwrap();
        assert_eq!(status.code, code, "{trap}");
        assert!(code != 137 || start.elapsed() >= grace);
    }
}

#[tokio::test]
async fn command_gets_its_input_arguments_and_variables_from_the_builder() {
    let (_agent, client) = start();
    let input = vec![b'x'; 3_000_000];
    let output = client.exec("cat", [""; 0]).stdin(input.clone()).output();
    let output = soon(output).await.unwrap();
    assert!(
        output.status.success() && output.stdout == input,
        "{:?}",
        output.status
    );
    // It need not be read.
    let output = soon(client.exec("true", [""; 0]).stdin(input).output())
        .await
        .unwrap();
    assert!(output.status.success(), "{:?}", output.status);

    let path = Path::new("a b");
    let output = client
        .command("sh")
        .args(["-c", "echo \"$#:$1:$2:$3:$A:$B\""])
        .arg("sh")
        .args([path, Path::new("c")])
        .arg(String::from("d"))
        .envs([("A", "1"), ("B", "2")])
        .env("B", "3")
        .output();
    assert_eq!(soon(output).await.unwrap().stdout, b"3:a b:c:d:1:3\n");
}

/// What a command wrote to both streams, and how it ended, by its events.
async fn told(mut events: vsock_agent_client::ExecEvents) -> (Vec<u8>, Vec<u8>, Option<i32>) {
    let (mut stdout, mut stderr, mut code) = (Vec::new(), Vec::new(), None);
    while let Some(event) = events.next().await {
        assert_eq!(code, None, "{event:?} after the end");
        match event.unwrap() {
            ExecEvent::Stdout(bytes) => stdout.extend(bytes),
            ExecEvent::Stderr(bytes) => stderr.extend(bytes),
            ExecEvent::Exit(status) => code = Some(status.code),
            event => panic!("{event:?}"),
        }
    }
    (stdout, stderr, code)
}

#[tokio::test]
async fn events_of_a_command_are_its_output_and_then_its_end() {
    let (_agent, client) = start();
    let script = "head -c 1000000 /dev/zero; echo err >&2; exit 6";
    let session = client.exec("sh", ["-c", script]).start().await.unwrap();
    let mut task = JoinSet::new();
    task.spawn(told(session.into_events()));
    let (stdout, stderr, code) = soon(task.join_next()).await.unwrap().unwrap();
    assert_eq!(
        (stdout.len(), &stderr[..], code),
        (1_000_000, &b"err\n"[..], Some(6))
    );

    // Its input ends, unless someone has it.
    let session = client.exec("cat", [""; 0]).start().await.unwrap();
    assert_eq!(soon(self::told(session.into_events())).await.2, Some(0));
    let session = client
        .exec("cat", [""; 0])
        .stdin("in")
        .start()
        .await
        .unwrap();
    assert_eq!(soon(self::told(session.into_events())).await.0, b"in");
}

#[tokio::test]
async fn command_is_killed_while_its_events_are_read() {
    let (_agent, client) = start();
    let session = client.exec("yes", [""; 0]).start().await.unwrap();
    let mut events = session.into_events();
    let first = soon(events.next()).await.unwrap().unwrap();
    assert!(matches!(first, ExecEvent::Stdout(_)), "{first:?}");
    events.control().signal(9).await.unwrap();
    assert_eq!(soon(told(events)).await.2, Some(137));
}

#[tokio::test]
async fn events_of_a_command_end_with_the_error_of_a_lost_agent() {
    let (agent, client) = start();
    let session = client.exec("sleep", ["600"]).start().await.unwrap();
    let mut events = session.into_events();
    let ((), error) = tokio::join!(async { drop(agent) }, soon(events.next()));
    let error = error.unwrap().unwrap_err();
    assert!(
        error.may_have_run() && error.kind() == ErrorKind::Lost,
        "{error:?}"
    );
    assert!(soon(events.next()).await.is_none());
}

fn news(number: u8) -> NewEvent {
    NewEvent::new("config", json!({ "number": number }))
}

#[tokio::test]
async fn events_are_a_stream_that_ends_with_its_agent() {
    let (agent, client) = start();
    let events = client.events(&["config"]).await.unwrap();
    for number in 0..3 {
        client.send_event(&news(number)).await.unwrap();
    }
    let numbers = events.map(|event| event.map(|event| event.metadata["number"].as_u64()));
    let mut numbers = Box::pin(numbers);
    for number in 0..3 {
        assert_eq!(soon(numbers.next()).await.unwrap().unwrap(), Some(number));
    }
    drop(agent);
    let rest = soon(numbers.collect::<Vec<_>>()).await;
    assert!(
        rest.len() <= 1 && rest.iter().all(Result::is_err),
        "{rest:?}"
    );
}

/// Leads to an agent, on connections that can be cut.
fn leads_until_cut(path: &Path, agent: PathBuf) -> (watch::Sender<()>, JoinSet<()>) {
    let listener = UnixListener::bind(path).unwrap();
    let (cut, is_cut) = watch::channel(());
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut connections = JoinSet::new();
        loop {
            let (mut near, _) = listener.accept().await.unwrap();
            let (agent, mut is_cut) = (agent.clone(), is_cut.clone());
            is_cut.mark_unchanged();
            connections.spawn(async move {
                let mut far = UnixStream::connect(agent).await.unwrap();
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                    _ = is_cut.changed() => {}
                }
            });
        }
    });
    (cut, task)
}

#[tokio::test]
async fn events_go_on_after_a_lost_connection_and_say_so() {
    let (agent, direct) = start();
    let folder = TestFolder::new("library");
    let path = folder.path().join("leads.sock");
    let (cut, leads) = leads_until_cut(&path, agent.socket());
    let timeouts = Timeouts::default().with_connect(Duration::from_millis(200));
    let endpoint: Endpoint = format!("unix:{}", path.display()).parse().unwrap();
    let client = Client::with_timeouts(endpoint.clone(), Security::Plain, timeouts);
    let mut events = client.events(&["config"]).await.unwrap().reconnecting();
    for number in 0..3 {
        direct.send_event(&news(number)).await.unwrap();
        let event = soon(events.next()).await.unwrap().unwrap();
        let Received::Event(event) = event else {
            panic!("{event:?}")
        };
        assert_eq!(event.metadata["number"], number);
        cut.send_replace(());
        let reconnected = soon(events.next()).await.unwrap();
        assert_eq!(reconnected.unwrap(), Received::Reconnected);
    }

    // While there is nothing, each attempt is an error, and the next one may succeed.
    drop((cut, leads));
    std::fs::remove_file(&path).unwrap();
    for _ in 0..2 {
        let error = soon(events.next()).await.unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unreachable, "{error:?}");
        assert_eq!(error.endpoint(), Some(&endpoint));
    }
    let (cut, leads) = leads_until_cut(&path, agent.socket());
    let reconnected = soon(events.next()).await.unwrap();
    assert_eq!(reconnected.unwrap(), Received::Reconnected);

    // What is no agent ends it.
    drop((cut, leads));
    std::fs::remove_file(&path).unwrap();
    let listener = UnixListener::bind(&path).unwrap();
    let talk = async {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.write_all(b"SSH-2.0-OpenSSH\r\n").await;
        }
    };
    tokio::select! {
        rest = soon(events.collect::<Vec<_>>()) => {
            let Some(Err(error)) = rest.last() else {
                panic!("{rest:?}")
            };
            assert_eq!(error.kind(), ErrorKind::Protocol, "{error:?}");
        }
        () = talk => unreachable!(),
    }
}

#[tokio::test]
async fn copy_that_owns_its_arguments_tells_everything_and_its_end() {
    let (_agent, client) = start();
    let sftp = client.sftp().await.unwrap();
    let folder = TestFolder::new("library");
    let (from, to, back) = ["from", "to", "back"]
        .map(|name| folder.path().join(name))
        .into();
    std::fs::create_dir_all(from.join("deep")).unwrap();
    for (name, bytes) in [("a", 10), ("deep/b", 3_000_000), ("deep/c", 0)] {
        std::fs::write(from.join(name), vec![b'x'; bytes]).unwrap();
    }
    let push = CopyJob::push(&sftp, [&from], &*to).recursive(true);
    let mut task = JoinSet::new();
    task.spawn(push.events().collect::<Vec<_>>());
    let updates = soon(task.join_next()).await.unwrap().unwrap();
    let updates: Vec<_> = updates.into_iter().map(Result::unwrap).collect();
    let moved = updates.iter().map(|update| match update {
        CopyUpdate::Moved { bytes } => *bytes,
        _ => 0,
    });
    assert_eq!(moved.sum::<u64>(), 3_000_010);
    let is_finished = |update: &&CopyUpdate| matches!(update, CopyUpdate::Finished { .. });
    assert_eq!(updates.iter().filter(is_finished).count(), 5);
    let Some(CopyUpdate::Done(summary)) = updates.last() else {
        panic!("{updates:?}")
    };
    assert_eq!(
        (summary.files, summary.directories, summary.bytes),
        (3, 2, 3_000_010)
    );

    let pull = CopyJob::pull(&sftp, [&*to], &back).recursive(true);
    let pulled = soon(pull.into_future()).await.unwrap();
    assert_eq!(pulled.bytes, 3_000_010);
    assert_eq!(
        std::fs::metadata(back.join("deep/b")).unwrap().len(),
        3_000_000
    );

    let missing = CopyJob::pull(&sftp, ["/no/such"], &back);
    let mut updates = soon(missing.events().collect::<Vec<_>>()).await;
    let error = updates.pop().unwrap().unwrap_err();
    assert!(
        matches!(error, CopyError::Client(ClientError::File { .. })),
        "{error:?}"
    );
    assert!(updates.iter().all(Result::is_ok), "{updates:?}");
}

#[tokio::test]
async fn counters_have_calls_commands_connections_and_bytes() {
    const BYTES: usize = 1_000_000;
    for (_agent, client) in [start(), start_with_tls()] {
        assert_eq!(client.counters(), Default::default());
        client.server_info().await.unwrap();
        client
            .clone()
            .request(Method::Get, "no path", None)
            .await
            .unwrap_err();
        let counters = client.counters();
        assert_eq!((counters.calls, counters.failed_calls), (2, 1));
        assert_eq!((counters.connections, counters.connections_open), (1, 1));
        assert_eq!(counters.commands, 0);

        let size = BYTES.to_string();
        let exec = client.exec("sh", ["-c", "cat > /dev/null; head -c $0 /dev/zero", &size]);
        soon(exec.stdin(vec![0; 2 * BYTES]).output()).await.unwrap();
        let after = client.counters();
        assert_eq!((after.calls, after.failed_calls, after.commands), (3, 1, 1));
        // Frames and TLS add less than a tenth.
        let received = after.bytes_received - counters.bytes_received;
        let sent = after.bytes_sent - counters.bytes_sent;
        for (counted, bytes) in [(received, BYTES as u64), (sent, 2 * BYTES as u64)] {
            assert!((bytes..bytes + bytes / 10).contains(&counted), "{after:?}");
        }
        soon(async {
            while client.counters().connections_open > 1 {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn listing_that_is_given_up_and_taken_up_again_has_every_entry() {
    const ENTRIES: usize = 1000;
    let (agent, client) = start();
    let folder = agent.folder().join("many");
    std::fs::create_dir(&folder).unwrap();
    for number in 0..ENTRIES {
        std::fs::write(folder.join(number.to_string()), "").unwrap();
    }
    let sftp = client.sftp().await.unwrap();
    let mut listing = sftp.read_dir(&*folder).await.unwrap();
    let (mut entries, mut given_up) = (0, 0);
    loop {
        tokio::select! {
            biased;
            entry = listing.next() => match entry.unwrap() {
                Some(_) => entries += 1,
                None => break,
            },
            () = tokio::task::yield_now() => given_up += 1,
        }
    }
    assert_eq!(entries, ENTRIES);
    assert!(given_up > 0);
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

#[test]
fn one_client_is_used_from_several_runtimes() {
    for (_agent, client) in [start(), start_with_tls()] {
        // Each leaves connections behind, which go on only while their runtime runs.
        let runtimes = [runtime(), runtime()];
        for _ in 0..3 {
            for runtime in &runtimes {
                runtime.block_on(soon(async {
                    client.server_info().await.unwrap();
                    client.operations().await.unwrap();
                    let output = client.exec("echo", ["out"]).output().await.unwrap();
                    assert_eq!(output.stdout, b"out\n");
                    client.sftp().await.unwrap().stat("/").await.unwrap();
                }));
            }
        }
        drop(runtimes);
        let gone = runtime();
        gone.block_on(soon(client.server_info())).unwrap();
        gone.block_on(soon(client.exec("true", [""; 0]).output()))
            .unwrap();
    }
}

/// A function of the example `stream`.
fn function<'a>(example: &'a str, name: &str) -> &'a str {
    let start = example.find(&format!("async fn {name}(")).unwrap();
    let (function, _) = example[start..].split_once("\n}\n").unwrap();
    function
}

#[test]
fn front_page_shows_the_example_which_is_shorter_than_for_this_computer() {
    let read = |path: &str| {
        let path = paths::repository().join("host-client").join(path);
        std::fs::read_to_string(path).unwrap()
    };
    let example = read("examples/stream.rs");
    let page = read("src/lib.rs");
    let page: Vec<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("//!"))
        .map(|line| line.strip_prefix(' ').unwrap_or(line))
        .collect();
    let (ours, theirs) = (function(&example, "in_guest"), function(&example, "here"));
    for text in [page.join("\n"), read("README.md")] {
        assert!(text.contains(ours) && text.contains(theirs), "{text}");
    }
    assert!(ours.lines().count() <= theirs.lines().count());
}

#[test]
fn example_does_the_same_in_a_guest_and_on_this_computer() {
    let agent = TestAgent::start();
    let example = build_example("vsock-agent-client", "stream");
    let run = |place: &str, script: &str, milliseconds: &str| {
        let mut command = std::process::Command::new(&example);
        let output = command.args([place, script, milliseconds]).output();
        output.unwrap()
    };
    for (script, milliseconds, stdout, code) in [
        ("echo out; echo err >&2; exit 3", "60000", "out\n", 3),
        ("cat; echo over", "60000", "over\n", 0),
        // Long enough for a slow computer to write the word.
        (
            "echo out; echo err >&2; exec sleep 600",
            "3000",
            "out\n",
            137,
        ),
    ] {
        let (guest, here) = (
            run(&agent.endpoint(), script, milliseconds),
            run("here", script, milliseconds),
        );
        assert_eq!(guest, here, "{script}");
        assert_eq!(guest.status.code(), Some(code), "{guest:?}");
        assert_eq!(guest.stdout, stdout.as_bytes());
    }
}

#[tokio::test]
async fn dropped_session_ends_its_command_also_after_waiting_was_given_up() {
    let (_agent, client) = start();
    let mut session = client.command("sleep").arg("600").start().await.unwrap();
    let waited = timeout(Duration::from_millis(50), session.wait()).await;
    waited.unwrap_err();
    let id = session.operation();
    let running = client.operation(id).await.unwrap();
    assert!(!running.is_final(), "{running:?}");
    drop(session);
    let ended = client.wait_operation(id, Some(SOON)).await.unwrap();
    assert!(ended.is_final(), "{ended:?}");
}

#[tokio::test]
async fn what_a_stock_agent_cannot_do_is_refused_before_it_is_asked() {
    let folder = TestFolder::new("library");
    let path = folder.path().join("stock.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let body = r#"{"type":"sync","metadata":{"environment":{"server":"lxd-agent"}}}"#;
        let length = body.len();
        let reply = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}");
        // One connection: a request that should not be made would find nobody.
        let (mut stream, _) = listener.accept().await.unwrap();
        stream
            .read_buf(&mut Vec::with_capacity(1024))
            .await
            .unwrap();
        stream.write_all(reply.as_bytes()).await.unwrap();
        std::future::pending::<()>().await;
        drop(stream);
    });
    let endpoint: Endpoint = format!("unix:{}", path.display()).parse().unwrap();
    let client = Client::new(endpoint.clone(), Security::Plain);
    let errors = [
        soon(client.port_forward(80)).await.map(drop).unwrap_err(),
        soon(client.metrics_text()).await.map(drop).unwrap_err(),
        soon(client.command("true").user("www").start())
            .await
            .map(drop)
            .unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
        assert_eq!(error.endpoint(), Some(&endpoint));
        assert!(!error.may_have_run());
    }
}

#[test]
fn agent_stops_at_once_although_an_idle_client_stands_still() {
    for (mut agent, client) in [start(), start_with_tls()] {
        let runtime = runtime();
        runtime.block_on(soon(async {
            client.server_info().await.unwrap();
            client.command("true").output().await.unwrap();
        }));
        let start = Instant::now();
        agent.stop();
        // Sessions that do not end are given 5 s.
        assert!(
            start.elapsed() < Duration::from_secs(3),
            "{:?}",
            start.elapsed()
        );
        drop(runtime);
    }
}
