//! `sftp` with a person: a terminal, keys, and what is on the screen.

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    sync::mpsc::{Receiver, channel},
    time::Duration,
};

use portable_pty::{Child, CommandBuilder, MasterPty, PtySize, native_pty_system};

use super::{Ends, cli, name};

/// Longest wait for something on the screen.
const PATIENCE: Duration = Duration::from_secs(20);

/// A prompt in a terminal.
struct Prompt {
    keys: Box<dyn Write + Send>,
    screen: Receiver<Vec<u8>>,
    text: String,
    child: Box<dyn Child + Send + Sync>,
    // Open as long as somebody looks.
    _terminal: Box<dyn MasterPty + Send>,
}

impl Prompt {
    fn start(ends: &Ends) -> Self {
        let size = PtySize {
            rows: 24,
            cols: 200,
            ..PtySize::default()
        };
        let terminal = native_pty_system().openpty(size).unwrap();
        let mut command = CommandBuilder::new(cli());
        command.args(["--plain", "sftp", &ends.agent.endpoint()]);
        command.cwd(ends.folder.path());
        command.env("TERM", "xterm");
        command.env("AGENT_CLI_CONFIG", ends.agent.folder().join("no-config"));
        command.env("XDG_STATE_HOME", ends.agent.folder().join("state"));
        let child = terminal.slave.spawn_command(command).unwrap();
        drop(terminal.slave);
        let keys = terminal.master.take_writer().unwrap();
        let mut reader = terminal.master.try_clone_reader().unwrap();
        let (sender, screen) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut prompt = Self {
            keys,
            screen,
            text: String::new(),
            child,
            _terminal: terminal.master,
        };
        prompt.wait_for("sftp> ");
        prompt.line(&format!("cd '{}'", ends.folder.path().display()));
        prompt
    }

    fn press(&mut self, keys: &str) {
        self.text.clear();
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Types a line, and waits for the prompt after it.
    fn line(&mut self, line: &str) {
        self.press(&format!("{line}\r"));
        self.wait_for_prompt();
    }

    fn wait_for_prompt(&mut self) {
        self.wait_until("a prompt", |text| {
            text.split_once('\n')
                .is_some_and(|(_, after)| after.contains("sftp> "))
        });
    }

    /// Waits until the screen has shown something since the last key.
    fn wait_for(&mut self, what: &str) {
        self.wait_until(what, |text| text.contains(what));
    }

    fn wait_until(&mut self, what: &str, is_there: impl Fn(&str) -> bool) {
        while !is_there(&self.text) {
            let more = self.screen.recv_timeout(PATIENCE);
            let more =
                more.unwrap_or_else(|error| panic!("no {what:?} in {:?}: {error}", self.text));
            self.text.push_str(&String::from_utf8_lossy(&more));
        }
    }

    fn leave(mut self) {
        self.press("\x04");
        assert!(self.child.wait().unwrap().success());
    }
}

#[test]
fn prompt_completes_and_quotes_remote_names() {
    let ends = Ends::start();
    ends.mkdir("some dir");
    ends.write("some dir/file", "");
    ends.write(name(b"b\xff\x1b"), "");
    let mut prompt = Prompt::start(&ends);
    prompt.press("rm so\t");
    prompt.wait_for(r"some\ dir/");
    prompt.press("f\t");
    prompt.wait_for("file ");
    prompt.line("");
    assert!(!ends.path("some dir/file").exists());
    prompt.press("rm b\t");
    prompt.wait_for(r"$'b\xff\x1b'");
    prompt.line("");
    assert_eq!(ends.names(), ["some dir"]);
    prompt.leave();
}

#[test]
fn prompt_survives_errors_and_ctrl_c() {
    let ends = Ends::start();
    let mut prompt = Prompt::start(&ends);
    prompt.line("rmdir nothing");
    assert!(prompt.text.contains("cannot remove"), "{}", prompt.text);
    prompt.press("mkdir no");
    prompt.wait_for("mkdir no");
    prompt.press("\x03");
    prompt.wait_for_prompt();
    prompt.line("mkdir yes");
    assert_eq!(ends.names(), ["yes"]);
    prompt.leave();
}

#[test]
fn prompt_history_is_private_and_excludes_batches() {
    let ends = Ends::start();
    let history = ends.agent.folder().join("state/vsock-agent/sftp-history");
    let mut prompt = Prompt::start(&ends);
    prompt.line("mkdir first");
    prompt.line(" mkdir hidden");
    prompt.leave();
    let content = fs::read_to_string(&history).unwrap();
    assert!(content.ends_with("\nmkdir first\n"), "{content}");
    assert_eq!(
        fs::metadata(&history).unwrap().permissions().mode() & 0o777,
        0o600
    );

    fs::remove_dir(ends.path("first")).unwrap();
    let mut prompt = Prompt::start(&ends);
    // Up, over the `cd` of this conversation.
    prompt.press("\x1b[A\x1b[A");
    prompt.wait_for("mkdir first");
    prompt.line("");
    assert!(ends.path("first").is_dir());
    prompt.leave();

    let before = fs::read(&history).unwrap();
    let mut batch = ends.cli(["sftp", "-b", "-", &ends.agent.endpoint()]);
    batch.env("XDG_STATE_HOME", ends.agent.folder().join("state"));
    let output = super::feed(&mut batch, b"pwd\n");
    super::succeeded(&output);
    assert_eq!(fs::read(&history).unwrap(), before);
}
