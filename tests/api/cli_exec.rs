//! `agent-cli exec` and `shell`, the real binary: what becomes of signals, terminals, and input that
//! breaks off.

use std::{
    fs::{File, OpenOptions, Permissions},
    io::{Read, Write},
    net::Shutdown,
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::mpsc::channel,
    thread,
    time::Duration,
};

use nix::{sys::signal::Signal, unistd::Pid};
use portable_pty::{CommandBuilder, PtySize, native_pty_system};

use crate::cli_files::{Ends, Runtime, cli, failed, feed, stderr, stdout, succeeded};

/// Longest wait for something that takes a moment on an idle machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// Whether these are the tests by the process of `agent-cli mux`: `main.rs` has this file twice.
fn is_by_mux() -> bool {
    module_path!().ends_with("by_mux")
}

fn start() -> Ends {
    let mut ends = Ends::start();
    ends.runtime = is_by_mux().then(|| Runtime::new().started());
    ends
}

/// `agent-cli exec`, with these options and this command.
fn exec(ends: &Ends, options: &[&str], command: &[&str]) -> Command {
    let endpoint = ends.agent.endpoint();
    ends.cli([&["exec"], options, &[&endpoint, "--"], command].concat())
}

/// Waits for a program, as long as can be expected.
fn wait(child: Child) -> Output {
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    let (tell, ended) = channel();
    thread::spawn(move || tell.send(child.wait_with_output().unwrap()));
    let output = ended.recv_timeout(PATIENCE);
    if output.is_err() {
        nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
    }
    output.expect("it should end")
}

#[test]
fn ignored_signals_stay_ignored() {
    let ends = start();
    let script = "trap 'exit 9' HUP TERM; echo up; read line; echo $line";
    let exec = exec(&ends, &[], &["sh", "-c", script]);
    let envs = exec
        .get_envs()
        .filter_map(|(name, value)| Some((name, value?)));
    let mut command = Command::new("sh");
    // As nohup does it.
    command.args(["-c", "trap '' HUP; exec \"$0\" \"$@\""]);
    command.arg(exec.get_program()).args(exec.get_args());
    command.envs(envs);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut output = child.stdout.take().unwrap();
    output.read_exact(&mut [0; 3]).unwrap();
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, Signal::SIGHUP).unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"still here\n").unwrap();
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "still here\n");
    assert_eq!(wait(child).status.code(), Some(0));
}

#[test]
fn exec_under_nohup_works() {
    let ends = start();
    let unreadable = OpenOptions::new().write(true).open("/dev/null").unwrap();
    let output = exec(&ends, &[], &["cat"]).stdin(unreadable).output();
    succeeded(&output.unwrap());
}

#[test]
fn unreadable_stdin_is_not_empty_input() {
    let ends = start();
    let whole = ends.path("whole");
    let script = format!("cat; echo > '{}'", whole.display());
    let write_only = File::create(ends.path("out")).unwrap();
    for (unreadable, why) in [
        (File::open("/").unwrap(), "Is a directory"),
        (write_only, "Bad file descriptor"),
    ] {
        let mut command = exec(&ends, &[], &["sh", "-c", &script]);
        let output = command.stdin(unreadable).output().unwrap();
        let words = failed(&output);
        assert!(words.contains("cannot read standard input"), "{words}");
        assert!(words.contains(why), "{words}");
    }
    assert!(
        !whole.exists(),
        "the command took it for the end of its input"
    );
}

/// A way to the agent that breaks each connection after so many bytes to the agent.
fn breaking(folder: &Path, to: PathBuf, limit: usize) -> String {
    let socket = folder.join("breaking.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || {
        for near in listener.incoming() {
            let near = near.unwrap();
            let far = UnixStream::connect(&to).unwrap();
            let (back_from, back_to) = (far.try_clone().unwrap(), near.try_clone().unwrap());
            thread::spawn(move || carry(back_from, back_to, usize::MAX));
            thread::spawn(move || carry(near, far, limit));
        }
    });
    format!("unix:{}", socket.display())
}

fn carry(mut from: UnixStream, mut to: UnixStream, mut limit: usize) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if count > limit || to.write_all(&buffer[..count]).is_err() {
            break;
        }
        limit -= count;
    }
    // They may be closed already.
    let _ = (to.shutdown(Shutdown::Both), from.shutdown(Shutdown::Both));
}

#[test]
fn lost_stdin_connection_reports_the_loss() {
    const MIB: usize = 1024 * 1024;
    let ends = start();
    let (part, whole) = (ends.path("part"), ends.path("whole"));
    let script = format!("cat > '{}' && echo > '{}'", part.display(), whole.display());
    let endpoint = breaking(ends.agent.folder(), ends.agent.socket(), MIB);
    let mut command = ends.cli(["exec", &endpoint, "--", "sh", "-c", &script]);
    let output = feed(&mut command, &vec![b'x'; 5 * MIB]);
    let words = failed(&output);
    assert!(words.contains("the connection was lost"), "{words}");
    // Its streams have one connection, so only the agent knows what became of the command.
    let given = std::fs::read(part).unwrap().len();
    assert!((MIB / 2..MIB).contains(&given), "{given}");
    assert!(!whole.exists());
}

#[test]
fn piped_stdin_ends_in_a_terminal_session() {
    let ends = start();
    for (typed, shown) in [("abc", "abcabc"), ("abc\n", "abc\r\nabc\r\n"), ("", "")] {
        let mut command = exec(&ends, &["-t"], &["cat"]);
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = piped.stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(typed.as_bytes()).unwrap();
        drop(stdin);
        let output = wait(child);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(stdout(&output), shown, "{typed:?}");
    }
}

#[test]
fn exec_without_stdin_has_no_terminal() {
    let ends = start();
    let terminal = native_pty_system().openpty(PtySize::default()).unwrap();
    let mut command = CommandBuilder::new(cli());
    let script = "test -t 1 || echo pipes; exec sleep 1000";
    let endpoint = ends.agent.endpoint();
    command.args(["--plain", "exec", "-n", &endpoint, "--", "sh", "-c", script]);
    command.env("AGENT_CLI_CONFIG", ends.path("none"));
    if let Some(runtime) = &ends.runtime {
        command.env("XDG_RUNTIME_DIR", runtime.0.path());
    }
    let mut child = terminal.slave.spawn_command(command).unwrap();
    drop(terminal.slave);
    let (tell, ended) = channel();
    let mut killer = child.clone_killer();
    thread::spawn(move || tell.send(child.wait().unwrap().exit_code()));
    let (shown, screen) = channel();
    let mut reader = terminal.master.try_clone_reader().unwrap();
    thread::spawn(move || {
        let (mut screen, mut buffer) = (Vec::new(), [0; 1024]);
        while !screen.ends_with(b"pipes\r\n") {
            let count = reader.read(&mut buffer).unwrap();
            screen.extend_from_slice(&buffer[..count]);
        }
        shown.send(()).unwrap();
    });
    let pipes = screen.recv_timeout(PATIENCE);
    let mut keys = terminal.master.take_writer().unwrap();
    keys.write_all(&[3]).unwrap();
    let code = ended.recv_timeout(PATIENCE);
    // It has ended already, if all is well.
    let _ = killer.kill();
    assert_eq!((pipes, code), (Ok(()), Ok(130)));
}

#[test]
fn shell_for_a_uid_without_account() {
    let ends = start();
    let endpoint = ends.agent.endpoint();
    let mut command = ends.cli(["shell", "-T", "--user", "4242", &endpoint]);
    let output = feed(&mut command, b"id -u; echo $SHELL\n");
    assert_eq!(succeeded(&output), "4242\n/bin/sh\n");
}

/// Takes away all that says where the home is.
fn homeless(command: &mut Command) -> &mut Command {
    command
        .env_remove("HOME")
        .env_remove("XDG_CONFIG_HOME")
        .env_remove("AGENT_CLI_CONFIG")
        .current_dir("/")
}

#[test]
fn endpoint_works_without_home() {
    // A user without an entry in /etc/passwd.
    const UID: u32 = 4242;
    let ends = start();
    let socket = ends.agent.socket();
    for path in [&socket, ends.agent.folder()] {
        std::fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    }
    // Where it is may be closed to others.
    let program = ends.agent.folder().join("agent-cli");
    // By another process: one that this one forks meanwhile would hold the file open for writing.
    let copied = Command::new("cp").args([cli(), &program]).status();
    assert!(copied.unwrap().success());
    let endpoint = ends.agent.endpoint();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&program);
        let command = homeless(command.args(arguments)).uid(UID);
        command.stdin(Stdio::null()).output().unwrap()
    };
    let output = run(&["--plain", "exec", &endpoint, "--", "echo", "ok"]);
    assert_eq!(succeeded(&output), "ok\n");
    let output = run(&["vm", "add", "x", "vsock:3"]);
    assert!(failed(&output).contains("HOME"), "{}", stderr(&output));
    // Root has one, which is found without HOME.
    let mut command = exec(&ends, &[], &["echo", "ok"]);
    assert_eq!(succeeded(&homeless(&mut command).output().unwrap()), "ok\n");
}
