//! Commands, by plain HTTP and websockets.

use std::{os::fd::AsRawFd, time::Duration};

use futures_util::SinkExt;
use harness::{
    RawClient, TestAgent, as_nobody, eventually, in_own_mounts,
    raw::{Connection, Plain, RawExec},
};
use nix::{
    mount::{MntFlags, umount2},
    sys::socket::{Shutdown, shutdown},
};
use serde_json::{Value, json};
use tokio::{
    io::AsyncWriteExt,
    time::{Instant, timeout},
};
use tokio_tungstenite::tungstenite::Message;

fn start() -> (TestAgent, RawClient) {
    let agent = TestAgent::start();
    let client = RawClient::new(&agent.socket());
    (agent, client)
}

#[tokio::test]
async fn exec_output_on_two_sockets_and_status() {
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
async fn exec_delivers_input_and_end_of_file() {
    let (_agent, client) = start();
    let mut exec = client.exec(&["cat"], json!({})).await;
    exec.send(b"hello").await;
    exec.end_input().await;
    assert_eq!(exec.read_all("1").await, b"hello");
    assert_eq!(exec.wait().await["metadata"]["return"], json!(0));
}

#[tokio::test]
async fn missing_command_is_127_and_not_executable_126() {
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
async fn missing_working_directory_is_an_error() {
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
async fn command_killed_by_a_signal_is_128_plus_number() {
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
async fn background_child_does_not_delay_the_exit() {
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
async fn command_does_not_inherit_the_agents_environment() {
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
async fn command_has_its_users_ids_and_three_descriptors() {
    let (_agent, client) = start();
    let script = "id -u; id -g; ls /proc/self/fd | wc -l; umask; ulimit -n; pwd";
    let more = json!({ "user": 65534, "group": 65534, "cwd": "/tmp" });
    let mut exec = client.exec(&["sh", "-c", script], more).await;
    let output = String::from_utf8(exec.read_all("1").await).unwrap();
    // `ls` has one more than the three: the directory it lists.
    assert_eq!(output, "65534\n65534\n4\n0022\n1024\n/tmp\n");
}

#[tokio::test]
async fn signal_dispositions_are_reset_in_the_command() {
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
async fn terminal_has_the_requested_size_and_follows_resizes() {
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
async fn ctrl_c_works_while_output_is_not_read() {
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
async fn too_long_argument_is_reported() {
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
async fn disconnect_ends_the_command_and_its_processes() {
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
async fn disconnect_ends_processes_outside_the_session() {
    let (_agent, client) = start();
    leave_what_left_the_session(&client).await;
}

async fn leave_what_left_the_session(client: &RawClient) {
    let script = "setsid sh -c 'echo $$; exec sleep 1000' & wait";
    let mut exec = client.exec(&["sh", "-c", script], json!({})).await;
    let pid = exec.read_until("1", "\n").await;
    let pid = nix::unistd::Pid::from_raw(pid.trim().parse().unwrap());
    drop(exec);
    let gone = async || nix::sys::signal::kill(pid, None).is_err();
    assert!(eventually(Duration::from_secs(20), gone).await);
}

#[test]
fn disconnect_ends_processes_without_a_cgroup2_mount() {
    in_own_mounts(|| {
        let mounts = std::fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        for mount in mounts.lines().filter(|line| line.contains(" - cgroup2 ")) {
            umount2(mount.split(' ').nth(4).unwrap(), MntFlags::MNT_DETACH).unwrap();
        }
        let (_agent, client) = start();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(leave_what_left_the_session(&client));
    });
}

#[tokio::test]
async fn cgroups_created_by_a_command_are_removed() {
    let (_agent, client) = start();
    let script = "mount=$(awk '/ - cgroup2 /{print $5; exit}' /proc/self/mountinfo)
        group=$mount$(sed -n s/^0:://p /proc/self/cgroup)
        mkdir $group/a $group/a/b $group/c && echo $group";
    let mut exec = client.exec(&["sh", "-ec", script], json!({})).await;
    let output = String::from_utf8(exec.read_all("1").await).unwrap();
    let group = std::path::Path::new(output.trim());
    assert!(output.contains("/vsock-agent/"), "{output}");
    assert_eq!(exec.wait().await["metadata"]["return"], json!(0));
    let gone = async || !group.exists();
    assert!(eventually(Duration::from_secs(20), gone).await);
}

#[tokio::test]
async fn cgroup_is_removed_when_its_last_process_exits() {
    let (_agent, client) = start();
    let script = "mount=$(awk '/ - cgroup2 /{print $5; exit}' /proc/self/mountinfo)
        sleep 1000 > /dev/null 2>&1 < /dev/null &
        echo $! $mount$(sed -n s/^0:://p /proc/self/cgroup)";
    let mut exec = client.exec(&["sh", "-ec", script], json!({})).await;
    let output = String::from_utf8(exec.read_all("1").await).unwrap();
    let (pid, group) = output.trim().split_once(' ').unwrap();
    let group = std::path::Path::new(group);
    assert!(output.contains("/vsock-agent/"), "{output}");
    assert_eq!(exec.wait().await["metadata"]["return"], json!(0));
    let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
    assert!(group.exists());
    nix::sys::signal::kill(pid, nix::sys::signal::SIGKILL).unwrap();
    let gone = async || !group.exists();
    assert!(eventually(Duration::from_secs(20), gone).await);
}

#[tokio::test]
async fn time_limit_ends_the_command() {
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
async fn wait_for_eof_keeps_output_open() {
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
async fn uid_for_no_change_is_refused() {
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
fn unprivileged_agent_runs_commands_as_its_own_user() {
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

/// A command that tells its pid and is left by its client.
async fn leave(client: &RawClient, script: &str, fields: Value) -> (String, nix::unistd::Pid) {
    let mut exec = client.exec(&["sh", "-c", script], fields).await;
    let socket = if exec.sockets.contains_key("1") {
        "1"
    } else {
        "0"
    };
    let pid = exec.read_until(socket, "\n").await;
    (
        exec.id.clone(),
        nix::unistd::Pid::from_raw(pid.trim().parse().unwrap()),
    )
}

#[tokio::test]
async fn kept_command_continues_without_its_client() {
    let (_agent, client) = start();
    let folder = harness::TestFolder::new("kept");
    let go = folder.path().join("go");
    for interactive in [false, true] {
        // Writes more than a pipe holds, and would end with SIGPIPE, HUP or a full pipe.
        let script = format!(
            "echo $$; until [ -e {} ]; do sleep 0.1; done; head -c 300000 /dev/zero && exit 7",
            go.display()
        );
        let more = json!({ "vsock_agent_on_disconnect": "keep", "interactive": interactive });
        let (id, _) = leave(&client, &script, more).await;
        std::fs::write(&go, "").unwrap();
        let end = client.get(&format!("/1.0/operations/{id}/wait")).await.body;
        assert_eq!(end["metadata"]["status"], json!("Success"), "{end}");
        assert_eq!(end["metadata"]["metadata"]["return"], json!(7), "{end}");
        std::fs::remove_file(&go).unwrap();
    }
}

#[tokio::test]
async fn kept_command_ends_on_cancel_and_time_limit() {
    let (_agent, client) = start();
    let keep = |timeout| json!({ "vsock_agent_on_disconnect": "keep", "timeout": timeout });
    let (id, _) = leave(&client, "echo $$; exec sleep 1000", keep(0)).await;
    let path = format!("/1.0/operations/{id}");
    assert_eq!(client.request("DELETE", &path, "").await.status, 200);
    let end = client.get(&format!("{path}/wait")).await.body["metadata"].clone();
    assert_eq!(end["metadata"]["signal"], json!(1), "{end}");

    // On a slow machine the time is over before it runs.
    let id = client.exec(&["sleep", "1000"], keep(1)).await.id;
    let path = format!("/1.0/operations/{id}/wait");
    let end = client.get(&path).await.body["metadata"].clone();
    assert_eq!(end["metadata"]["timed_out"], json!(true), "{end}");
}

#[tokio::test]
async fn disconnect_with_hangup_sends_sighup() {
    let (_agent, client) = start();
    for interactive in [false, true] {
        let more = json!({ "vsock_agent_on_disconnect": "hangup", "interactive": interactive });
        let (id, _) = leave(&client, "echo $$; exec sleep 1000", more.clone()).await;
        let end = client.get(&format!("/1.0/operations/{id}/wait")).await.body;
        assert_eq!(end["metadata"]["metadata"]["signal"], json!(1), "{end}");

        // As `nohup` and `tmux` do.
        let script = "trap '' HUP; setsid sleep 1000 & echo $!; wait";
        let (id, server) = leave(&client, script, more).await;
        let end = client.get(&format!("/1.0/operations/{id}/wait")).await.body;
        let text = end["metadata"]["err"].as_str().unwrap();
        assert_eq!(
            text, "its client is gone, and the command keeps running",
            "{end}"
        );
        nix::sys::signal::kill(server, nix::sys::signal::SIGTERM).expect("it lives");
    }
}

#[tokio::test]
async fn huge_time_limit_is_no_limit() {
    let (_agent, client) = start();
    let more = json!({ "timeout_ms": u64::MAX, "kill_pause_ms": u64::MAX });
    let script = ["sh", "-c", "echo up; exec sleep 1000"];
    let mut exec = client.exec(&script, more).await;
    exec.read_until("1", "up").await;
    let path = format!("/1.0/operations/{}", exec.id);
    assert_eq!(client.request("DELETE", &path, "").await.status, 200);
    let end = exec.wait().await;
    assert_eq!(end["metadata"]["signal"], json!(1), "{end}");
}

#[tokio::test]
async fn zero_time_limit_is_no_limit() {
    let (_agent, client) = start();
    let exec = client
        .exec(&["sh", "-c", "sleep 1; exit 3"], json!({ "timeout": 0 }))
        .await;
    let end = exec.wait().await;
    assert_eq!(end["metadata"]["return"], json!(3), "{end}");
    assert_eq!(end["metadata"].get("timed_out"), None, "{end}");
}

#[tokio::test]
async fn lingering_output_ends_on_time_limit_and_cancel() {
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
async fn exec_round_trips_fifty_megabytes() {
    let (_agent, client) = start();
    let mut exec = client.exec(&["cat"], json!({})).await;
    let data: Vec<u8> = (0..50_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let mut input = exec.sockets.remove("0").unwrap();
    let send = async {
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
async fn command_that_never_reads_blocks_nothing_else() {
    let (_agent, client) = start();
    let mut exec = client
        .exec(&["sh", "-c", "echo up; sleep 1000"], json!({}))
        .await;
    exec.read_until("1", "up").await;
    // More than the pipe and the socket hold, so that the agent's pump is stuck on the pipe.
    let mut input = exec.sockets.remove("0").unwrap();
    let stuck = async {
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
async fn closing_an_output_socket_sends_sigpipe() {
    let (_agent, client) = start();
    let mut exec = client.exec(&["yes"], json!({})).await;
    exec.read_until("1", "y\n").await;
    drop(exec.sockets.remove("1"));
    let end = exec.wait().await;
    assert_eq!(end["metadata"]["signal"], json!(13));
}

/// What pylxd sends: `null` for what its caller did not say.
#[tokio::test]
async fn null_fields_are_defaults() {
    let (_agent, client) = start();
    let nulls = json!({
        "environment": { "A": null, "B": "b" }, "user": null, "group": null, "cwd": null,
        "width": null, "height": null, "interactive": null, "record-output": null,
        "user_name": null, "group_name": null, "timeout": null, "wait_for_eof": null,
    });
    let script = "id -u; id -g; pwd; echo ${A-unset} $B";
    let mut exec = client.exec(&["sh", "-c", script], nulls).await;
    let output = String::from_utf8(exec.read_all("1").await).unwrap();
    let home = std::env::home_dir().unwrap();
    assert_eq!(output, format!("0\n0\n{}\nunset b\n", home.display()));
}

/// Joins these sockets of a command, and no others.
async fn join(client: &RawClient, command: &[&str], names: &[&str]) -> (RawExec, Value) {
    let reply = client.post_exec(command, json!({})).await.body;
    let fds = reply["metadata"]["metadata"]["fds"].clone();
    let mut exec = client.unjoined(reply["metadata"]["id"].as_str().unwrap());
    for name in names {
        let secret = fds[name].as_str().unwrap();
        exec.join(name, secret).await;
    }
    (exec, fds)
}

#[tokio::test]
async fn control_socket_is_optional() {
    let (_agent, client) = start();
    let start = Instant::now();
    let (mut exec, _) = join(&client, &["sh", "-c", "cat; exit 3"], &["0", "1", "2"]).await;
    exec.send(b"in").await;
    exec.end_input().await;
    assert_eq!(exec.read_all("1").await, b"in");
    assert_eq!(exec.wait().await["metadata"]["return"], json!(3));
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[tokio::test]
async fn without_control_socket_stdout_decides_disconnect() {
    let (_agent, client) = start();
    let command = [
        "sh",
        "-c",
        "trap 'exit 7' HUP; echo up; while :; do sleep 0.1; done",
    ];
    let (mut exec, _) = join(&client, &command, &["0", "1", "2"]).await;
    exec.read_until("1", "up").await;
    drop(exec.sockets.remove("1"));
    assert_eq!(exec.wait().await["metadata"]["return"], json!(7));
}

#[tokio::test]
async fn control_socket_may_be_joined_later() {
    let (_agent, client) = start();
    let command = [
        "sh",
        "-c",
        "trap 'echo hup' HUP; echo up; while :; do sleep 0.1; done",
    ];
    let (mut exec, fds) = join(&client, &command, &["0", "1", "2"]).await;
    exec.read_until("1", "up").await;
    exec.join("control", fds["control"].as_str().unwrap()).await;
    exec.control(json!({ "command": "signal", "signal": 1 }))
        .await;
    exec.read_until("1", "hup").await;
    exec.control(json!({ "command": "signal", "signal": 9 }))
        .await;
    assert_eq!(exec.wait().await["metadata"]["return"], json!(137));
}

#[tokio::test]
async fn background_job_can_write_after_the_command_exits() {
    let (agent, client) = start();
    let [go, done] = ["go", "done"].map(|name| agent.socket().with_file_name(name));
    // More than a pipe holds.
    let job = "(until [ -e $0 ]; do sleep 0.1; done; \
               head -c 200000 /dev/zero && head -c 200000 /dev/zero >&2 && echo > $1) &";
    let command = [
        "sh",
        "-c",
        job,
        go.to_str().unwrap(),
        done.to_str().unwrap(),
    ];
    let exec = client.exec(&command, json!({})).await;
    assert_eq!(exec.wait().await["metadata"]["return"], json!(0));
    std::fs::write(go, "").unwrap();
    drop(exec);
    assert!(eventually(Duration::from_secs(20), async || done.exists()).await);
}

#[tokio::test]
async fn messages_of_any_size_reach_the_command() {
    let (_agent, client) = start();
    let mut exec = client.exec(&["cksum"], json!({})).await;
    let data: Vec<u8> = (0..5_000_003_u32)
        .map(|n| (n >> 3).to_le_bytes()[0])
        .collect();
    exec.send(&data).await;
    exec.end_input().await;
    let sum = String::from_utf8(exec.read_all("1").await).unwrap();
    assert!(sum.ends_with(" 5000003\n"), "{sum}");
    let end = exec.wait().await;
    assert_eq!(end["metadata"]["bytes"]["0"], json!(5_000_003));
    assert_eq!(end["metadata"].get("input_lost"), None);
}

#[tokio::test]
async fn orderly_websocket_close_ends_the_input() {
    let (_agent, client) = start();
    let mut exec = client.exec(&["cat"], json!({})).await;
    exec.send(b"hello").await;
    exec.sockets
        .get_mut("0")
        .unwrap()
        .close(None)
        .await
        .unwrap();
    assert_eq!(exec.read_all("1").await, b"hello");
    let end = exec.wait().await;
    assert_eq!(
        (&end["status"], &end["metadata"]["return"]),
        (&json!("Success"), &json!(0))
    );
}

/// How the connection of the input breaks off.
#[derive(Debug, Clone, Copy)]
enum Break {
    Closed,
    Unmasked,
    MidFrame,
}

async fn break_input(exec: &mut RawExec, how: Break) {
    let mut socket = exec.sockets.remove("0").unwrap();
    let bytes: &[u8] = match how {
        Break::Closed => b"",
        Break::Unmasked => b"\x82\x02ab",
        Break::MidFrame => b"\x82\xff\0\0\0\0\0\x10\0\0\0\0\0\0half of it",
    };
    let connection: &mut Connection = socket.get_mut();
    connection.write_all(bytes).await.unwrap();
}

#[tokio::test]
async fn broken_input_connection_is_not_end_of_file() {
    let (agent, client) = start();
    for (interactive, how) in [
        (false, Break::Closed),
        (false, Break::Unmasked),
        (false, Break::MidFrame),
        (true, Break::Closed),
        (true, Break::Unmasked),
    ] {
        let whole = agent.socket().with_file_name("whole");
        let script = "stty raw 2>/dev/null; echo up; cat > /dev/null; echo > $0";
        let command = ["sh", "-c", script, whole.to_str().unwrap()];
        let more = json!({ "interactive": interactive });
        let mut exec = client.exec(&command, more).await;
        exec.read_until(if interactive { "0" } else { "1" }, "up")
            .await;
        exec.send(&[b'x'; 100_000][..if interactive { 3 } else { 100_000 }])
            .await;
        break_input(&mut exec, how).await;
        let end = exec.wait().await;
        assert_eq!(end["status"], json!("Failure"), "{how:?}: {end}");
        assert_eq!(end["metadata"]["return"], json!(129), "{how:?}: {end}");
        let given = end["metadata"]["input_lost"].as_u64().unwrap();
        assert!((3..200_000).contains(&given), "{how:?}: {end}");
        let error = end["err"].as_str().unwrap();
        assert!(error.contains(&format!("{given} bytes")), "{error}");
        assert!(!whole.exists(), "{how:?}");
    }
}

#[tokio::test]
async fn terminal_with_unsendable_output_loses_its_input() {
    let (_agent, client) = start();
    let command = ["sh", "-c", "stty raw; echo up; cat"];
    let mut exec = client.exec(&command, json!({ "interactive": true })).await;
    exec.read_until("0", "up").await;
    // Then the agent can still read from the connection, and not write.
    let Connection::Left(Plain::Left(stream)) = exec.sockets["0"].get_ref() else {
        panic!("no Unix socket");
    };
    shutdown(stream.as_raw_fd(), Shutdown::Read).unwrap();
    exec.send(b"abc").await;
    let end = exec.wait().await;
    assert_eq!(end["status"], json!("Failure"), "{end}");
    assert_eq!(end["metadata"]["return"], json!(129), "{end}");
    assert_eq!(end["metadata"]["input_lost"], json!(3), "{end}");
}

#[tokio::test]
async fn program_that_closes_its_terminal_gets_no_sighup() {
    let (agent, client) = start();
    let go = agent.socket().with_file_name("go");
    let script = "exec <&- >&- 2>&-; until [ -e $0 ]; do sleep 0.1; done; exit 5";
    let command = ["sh", "-c", script, go.to_str().unwrap()];
    let mut exec = client.exec(&command, json!({ "interactive": true })).await;
    exec.read_all("0").await;
    std::fs::write(go, "").unwrap();
    assert_eq!(exec.wait().await["metadata"]["return"], json!(5));
}

#[tokio::test]
async fn success_after_lost_input_is_a_failure() {
    let (_agent, client) = start();
    let script = "trap 'exit 0' HUP; echo up; while :; do sleep 0.1; done";
    let mut exec = client.exec(&["sh", "-c", script], json!({})).await;
    exec.read_until("1", "up").await;
    break_input(&mut exec, Break::Closed).await;
    let end = exec.wait().await;
    assert_eq!(
        (&end["status"], &end["metadata"]["return"]),
        (&json!("Failure"), &json!(129))
    );
}
