//! Commands, by plain HTTP and websockets.

use std::time::Duration;

use harness::{RawClient, TestAgent, as_nobody, eventually};
use serde_json::json;
use tokio::time::{Instant, timeout};

fn start() -> (TestAgent, RawClient) {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    (agent, client)
}

#[tokio::test]
async fn output_comes_on_two_sockets_and_the_status_in_the_end() {
    let (_agent, client) = start();
    let mut exec = client
        .exec(&["sh", "-c", "echo out; echo err >&2; exit 7"], json!({}))
        .await;
    assert_eq!(exec.read_all("1").await, b"out\n");
    assert_eq!(exec.read_all("2").await, b"err\n");
    let end = exec.wait().await;
    assert_eq!(
        (&end["status_code"], &end["metadata"]["return"]),
        (&json!(200), &json!(7))
    );
    assert_eq!(end["metadata"]["bytes"], json!({ "1": 4, "2": 4 }));
    assert_eq!(end["metadata"]["output_complete"], json!(true));
}

#[tokio::test]
async fn input_reaches_the_command_and_so_does_its_end() {
    let (_agent, client) = start();
    let mut exec = client.exec(&["cat"], json!({})).await;
    exec.send(b"hello").await;
    exec.end_input().await;
    assert_eq!(exec.read_all("1").await, b"hello");
    assert_eq!(exec.wait().await["metadata"]["return"], json!(0));
}

#[tokio::test]
async fn a_command_that_is_not_there_is_127_and_one_that_cannot_run_is_126() {
    let (_agent, client) = start();
    for (command, code, kind) in [
        ("/no/such", 127, "not-found"),
        ("no-such-command", 127, "not-found"),
        ("/etc/passwd", 126, "not-executable"),
        ("/", 126, "not-executable"),
    ] {
        let end = client.exec(&[command], json!({})).await.wait().await;
        assert_eq!(end["status_code"], json!(400), "{command}");
        assert_eq!(end["metadata"]["return"], json!(code), "{command}");
        assert_eq!(end["metadata"]["start_error"], json!(kind), "{command}");
        assert!(end["err"].as_str().unwrap().contains(command), "{end}");
    }
}

#[tokio::test]
async fn a_directory_that_is_not_there_is_an_error_and_no_other_is_taken() {
    let (_agent, client) = start();
    let end = client
        .exec(&["pwd"], json!({ "cwd": "/no/such" }))
        .await
        .wait()
        .await;
    assert_eq!(end["status_code"], json!(400));
    assert_eq!(end["metadata"]["start_error"], json!("bad-cwd"));
}

#[tokio::test]
async fn a_signal_ends_the_command_with_128_and_its_number() {
    let (_agent, client) = start();
    let mut exec = client
        .exec(&["sh", "-c", "echo up; sleep 1000"], json!({}))
        .await;
    exec.read_until("1", "up").await;
    exec.control(json!({ "command": "signal", "args": null, "signal": 15 }))
        .await;
    let end = exec.wait().await;
    assert_eq!(end["metadata"]["return"], json!(143));
    assert_eq!(end["metadata"]["signal"], json!(15));
}

#[tokio::test]
async fn a_background_child_that_holds_the_output_does_not_hold_the_command() {
    let (_agent, client) = start();
    let start = Instant::now();
    let mut exec = client
        .exec(&["sh", "-c", "sleep 1000 & echo $!"], json!({}))
        .await;
    let pid = String::from_utf8(exec.read_all("1").await).unwrap();
    let end = exec.wait().await;
    assert!(
        start.elapsed() < Duration::from_secs(3),
        "took {:?}",
        start.elapsed()
    );
    assert_eq!(end["metadata"]["return"], json!(0));
    assert_eq!(end["metadata"]["output_complete"], json!(false));
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).expect("it should still be there");
}

#[tokio::test]
async fn the_environment_is_what_was_asked_for_and_nothing_of_the_agents() {
    let (_agent, client) = start();
    let mut exec = client
        .exec(&["env"], json!({ "environment": { "A": "b c" } }))
        .await;
    let text = String::from_utf8(exec.read_all("1").await).unwrap();
    let mut names: Vec<_> = text
        .lines()
        .map(|line| line.split_once('=').unwrap().0)
        .collect();
    names.sort_unstable();
    assert_eq!(
        names,
        ["A", "HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER"],
        "{text}"
    );
}

#[tokio::test]
async fn a_user_has_its_own_ids_and_the_command_no_open_file_but_three() {
    let (_agent, client) = start();
    let script = "id -u; id -g; ls /proc/self/fd | wc -l; umask; ulimit -n; pwd";
    let more = json!({ "user": 65534, "group": 65534, "cwd": "/tmp" });
    let mut exec = client.exec(&["sh", "-c", script], more).await;
    let output = String::from_utf8(exec.read_all("1").await).unwrap();
    // `ls` has one more than the three: the directory it lists.
    assert_eq!(output, "65534\n65534\n4\n0022\n1024\n/tmp\n");
}

#[tokio::test]
async fn signals_the_agent_handles_or_ignores_are_reset_in_the_command() {
    let (_agent, client) = start();
    let mut exec = client
        .exec(&["grep", "^Sig[BI]", "/proc/self/status"], json!({}))
        .await;
    let output = String::from_utf8(exec.read_all("1").await).unwrap();
    assert_eq!(
        output,
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    );
}

#[tokio::test]
async fn a_terminal_has_the_size_that_was_asked_for_and_follows_a_resize() {
    let (_agent, client) = start();
    let more = json!({ "interactive": true, "width": 100, "height": 30 });
    let script =
        "tty; stty size; trap 'stty size; exit 3' WINCH; echo ready; while :; do sleep 0.05; done";
    let mut exec = client.exec(&["sh", "-c", script], more).await;
    let output = exec.read_until("0", "ready\r\n").await;
    assert!(
        output.contains("/dev/pts/") && output.contains("30 100"),
        "{output:?}"
    );
    let args = json!({ "width": "120", "height": "40" });
    exec.control(json!({ "command": "window-resize", "args": args, "signal": 0 }))
        .await;
    assert_eq!(exec.read_all("0").await, b"40 120\r\n");
    assert_eq!(exec.wait().await["metadata"]["return"], json!(3));
}

#[tokio::test]
async fn ctrl_c_in_a_terminal_ends_the_foreground_job() {
    let (_agent, client) = start();
    let mut exec = client.exec(&["cat"], json!({ "interactive": true })).await;
    exec.send(b"hello\n").await;
    exec.read_until("0", "hello\r\nhello\r\n").await;
    exec.send(&[3]).await;
    assert_eq!(exec.wait().await["metadata"]["return"], json!(130));
}

#[tokio::test]
async fn ctrl_c_is_not_behind_output_that_nobody_reads() {
    let (_agent, client) = start();
    let more = json!({ "interactive": true });
    let mut exec = client.exec(&["sh", "-c", "echo $$; exec yes"], more).await;
    let output = exec.read_until("0", "\n").await;
    let pid = output.split_ascii_whitespace().next().unwrap().to_owned();
    let state = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .map(|(_, rest)| rest.chars().next().unwrap())
    };
    // Asleep: everything between it and us is full.
    assert!(eventually(Duration::from_secs(20), async || state() == Some('S')).await);
    exec.send(&[3]).await;
    let ended = async || matches!(state(), None | Some('Z'));
    assert!(
        eventually(Duration::from_secs(1), ended).await,
        "{:?}",
        state()
    );
}

#[tokio::test]
async fn an_argument_the_kernel_does_not_take_is_said_so() {
    let (_agent, client) = start();
    let argument = "x".repeat(200_000);
    let end = client
        .exec(&["true", &argument], json!({}))
        .await
        .wait()
        .await;
    assert_eq!(end["metadata"]["start_error"], json!("too-long"));
    assert_eq!(end["metadata"]["return"], json!(126));
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_command_and_all_it_started() {
    let (_agent, client) = start();
    let script = "trap '' HUP; sleep 1000 & echo $!; wait";
    let mut exec = client.exec(&["sh", "-c", script], json!({})).await;
    let pid = exec.read_until("1", "\n").await;
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    drop(exec);
    // It ignores HUP, as its shell did, and goes with TERM 5 s later.
    let gone = async || nix::sys::signal::kill(pid, None).is_err();
    assert!(eventually(Duration::from_secs(20), gone).await);
}

#[tokio::test]
async fn a_client_that_leaves_ends_what_left_the_session_too() {
    let (_agent, client) = start();
    let script = "setsid sh -c 'echo $$; exec sleep 1000' & wait";
    let mut exec = client.exec(&["sh", "-c", script], json!({})).await;
    let pid = exec.read_until("1", "\n").await;
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    drop(exec);
    let gone = async || nix::sys::signal::kill(pid, None).is_err();
    assert!(eventually(Duration::from_secs(20), gone).await);
}

#[tokio::test]
async fn a_command_whose_time_is_over_is_ended() {
    let (_agent, client) = start();
    let start = Instant::now();
    let exec = client
        .exec(&["sleep", "1000"], json!({ "timeout": 1 }))
        .await;
    let end = exec.wait().await;
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(end["metadata"]["timed_out"], json!(true));
    assert_eq!(end["metadata"]["signal"], json!(1));
}

#[tokio::test]
async fn output_goes_on_as_long_as_anything_holds_it_if_that_is_asked_for() {
    let (_agent, client) = start();
    let script = "(sleep 3; echo late) & echo early";
    let mut exec = client
        .exec(&["sh", "-c", script], json!({ "wait_for_eof": true }))
        .await;
    assert_eq!(exec.read_all("1").await, b"early\nlate\n");
    assert_eq!(
        exec.wait().await["metadata"]["output_complete"],
        json!(true)
    );
}

#[tokio::test]
async fn the_user_that_would_be_nobody_else_is_refused() {
    let (_agent, client) = start();
    for fields in [
        json!({ "user": 4_294_967_295_u32 }),
        json!({ "group": 4_294_967_295_u32 }),
        json!({ "user_name": "4294967295" }),
        json!({ "group_name": "4294967295" }),
    ] {
        let reply = client.post_exec(&["id"], fields.clone()).await;
        assert_eq!(reply.status, 400, "{fields}: {reply:?}");
        let text = reply.body.to_string();
        assert!(text.contains("4294967295"), "{fields}: {text}");
    }
}

#[test]
fn an_agent_without_root_runs_commands_as_its_own_user() {
    as_nobody(|| {
        let (_agent, client) = start();
        let asked = async {
            for more in [json!({}), json!({ "user_name": "nobody" })] {
                let mut exec = client.exec(&["id", "-u"], more).await;
                assert_eq!(exec.read_all("1").await, b"65534\n");
                assert_eq!(exec.wait().await["metadata"]["return"], json!(0));
            }
            let more = json!({ "user_name": "root" });
            assert_eq!(client.post_exec(&["id"], more).await.status, 403);
        };
        tokio::runtime::Runtime::new().unwrap().block_on(asked);
    });
}

#[tokio::test]
async fn no_time_at_all_is_no_limit() {
    let (_agent, client) = start();
    let exec = client
        .exec(&["sh", "-c", "sleep 1; exit 3"], json!({ "timeout": 0 }))
        .await;
    let end = exec.wait().await;
    assert_eq!(end["metadata"]["return"], json!(3), "{end}");
    assert_eq!(end["metadata"].get("timed_out"), None, "{end}");
}

#[tokio::test]
async fn output_that_goes_on_is_ended_when_the_time_is_over_and_when_that_is_asked_for() {
    let (_agent, client) = start();
    for timeout in [2, 0] {
        let script = "sleep 1000 & echo early";
        let more = json!({ "wait_for_eof": true, "timeout": timeout });
        let mut exec = client.exec(&["sh", "-c", script], more).await;
        exec.read_until("1", "early\n").await;
        if timeout == 0 {
            let path = format!("/1.0/operations/{}", exec.id);
            assert_eq!(client.request("DELETE", &path, "").await.status, 200);
        }
        // The stream comes to its end, and what was sent is told.
        assert_eq!(exec.read_all("1").await, b"");
        let end = exec.wait().await;
        let code = if timeout == 0 { 401 } else { 200 };
        assert_eq!(end["status_code"], json!(code), "{end}");
        assert_eq!(end["metadata"]["bytes"], json!({ "1": 6, "2": 0 }), "{end}");
        let timed_out = end["metadata"].get("timed_out").is_some();
        assert_eq!(timed_out, timeout > 0, "{end}");
    }
}

#[tokio::test]
async fn fifty_megabytes_go_both_ways_unchanged() {
    let (_agent, client) = start();
    let mut exec = client.exec(&["cat"], json!({})).await;
    let data: Vec<u8> = (0..50_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut input = exec.sockets.remove("0").unwrap();
    let send = async {
        use futures_util::SinkExt;
        use tokio_tungstenite::tungstenite::Message;
        for piece in data.chunks(100_000) {
            input.send(Message::binary(piece.to_vec())).await.unwrap();
        }
        input.send(Message::text("")).await.unwrap();
    };
    let (output, ()) = tokio::join!(exec.read_all("1"), send);
    assert!(
        output == data,
        "{} of {} bytes came back, or others",
        output.len(),
        data.len()
    );
    assert_eq!(
        exec.wait().await["metadata"]["bytes"]["1"],
        json!(data.len())
    );
}

#[tokio::test]
async fn a_command_that_never_reads_does_not_hold_anything_up() {
    let (_agent, client) = start();
    let mut exec = client
        .exec(&["sh", "-c", "echo up; sleep 1000"], json!({}))
        .await;
    exec.read_until("1", "up").await;
    // More than the pipe and the socket hold, so that the agent's pump is stuck on the pipe.
    let mut input = exec.sockets.remove("0").unwrap();
    let stuck = async {
        use futures_util::SinkExt;
        use tokio_tungstenite::tungstenite::Message;
        loop {
            input.send(Message::binary(vec![0; 65536])).await.unwrap();
        }
    };
    timeout(Duration::from_millis(200), stuck)
        .await
        .unwrap_err();
    exec.control(json!({ "command": "signal", "args": null, "signal": 9 }))
        .await;
    assert_eq!(exec.wait().await["metadata"]["return"], json!(137));
}

#[tokio::test]
async fn an_output_socket_that_is_closed_early_gives_the_command_sigpipe() {
    let (_agent, client) = start();
    let mut exec = client.exec(&["yes"], json!({})).await;
    exec.read_until("1", "y\n").await;
    drop(exec.sockets.remove("1"));
    let end = exec.wait().await;
    assert_eq!(end["metadata"]["signal"], json!(13));
}
