//! The program itself, put in the place of `lxd-agent` or `incus-agent`: started by their names,
//! with their flags, in a copy of the config share.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise"
)]

use std::{
    fs,
    io::{Read, Write},
    os::unix::net::{UnixDatagram, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Longest that a start may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A guest with the agent under another name.
struct Guest {
    folder: PathBuf,
    agent: Child,
    notify: UnixDatagram,
}

impl Guest {
    fn start(name: &str, arguments: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("stand-in-{}-{number}", std::process::id()));
        let share = folder.join("run");
        fs::create_dir_all(share.join("files")).unwrap();
        let program = folder.join(name);
        fs::copy(env!("CARGO_BIN_EXE_vsock-agent"), &program).unwrap();
        let target = folder.join("guest/motd");
        let metadata = format!(
            "templates:\n  {}:\n    template: motd.tpl\n",
            target.display()
        );
        fs::write(share.join("files/metadata.yaml"), metadata).unwrap();
        fs::write(share.join("files/motd.tpl.out"), "welcome\n").unwrap();
        let notify = UnixDatagram::bind(folder.join("notify")).unwrap();
        notify.set_read_timeout(Some(PATIENCE)).unwrap();
        let agent = Command::new(program)
            .args(arguments)
            .current_dir(&share)
            .env_clear()
            .env("NOTIFY_SOCKET", folder.join("notify"))
            .env(
                "VSOCK_AGENT_LISTEN",
                format!("unix:{}", folder.join("sock").display()),
            )
            .env("VSOCK_AGENT_PLAIN", "true")
            .env("VSOCK_AGENT_CONFIG", "/dev/null")
            .spawn()
            .unwrap();
        Self {
            folder,
            agent,
            notify,
        }
    }

    fn hear(&self) -> String {
        let mut text = [0; 64];
        let length = self.notify.recv(&mut text).expect("the agent says nothing");
        String::from_utf8_lossy(&text[..length]).into_owned()
    }

    fn get(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(self.folder.join("sock")).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        reply
    }

    fn file(&self) -> PathBuf {
        self.folder.join("guest/motd")
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}

#[test]
fn stand_in_names_and_flags_select_the_family() {
    for (name, arguments, server) in [
        ("lxd-agent", [].as_slice(), "lxd-agent"),
        ("lxd-agent", &["-d"], "lxd-agent"),
        ("lxd-agent", &["--verbose", "more"], "lxd-agent"),
        ("incus-agent", &["--debug", "-s", "/nowhere"], "incus-agent"),
        ("vsock-agent", &["-v", "--share", "."], "lxd-agent"),
    ] {
        let mut guest = Guest::start(name, arguments);
        assert_eq!(guest.hear(), "READY=1", "{name} {arguments:?}");
        // The host's files were there, and it listened, before it said so.
        assert_eq!(read(&guest.file()), "welcome\n");
        let reply = guest.get("/1.0");
        let server = format!("\"server\":\"{server}\"");
        assert!(reply.contains(&server), "{name} {arguments:?}: {reply}");
        let pid = i32::try_from(guest.agent.id()).unwrap();
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        assert_eq!(guest.hear(), "STOPPING=1");
        assert!(guest.agent.wait().unwrap().success());
    }
}

#[test]
fn own_name_ignores_the_working_directory() {
    let guest = Guest::start("vsock-agent", &[]);
    assert_eq!(guest.hear(), "READY=1");
    assert!(!guest.file().exists());
}
