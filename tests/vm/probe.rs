//! A client in the guest that shares no code with the product: a perl script, with this computer's perl
//! (which Debian always has) and the libraries it needs.

use std::{fs, process::Stdio};

use harness::TestVm;
use tokio::process::Command;

use crate::{in_guest, succeed};

/// The interpreter that is copied into the guest.
const PERL: &str = "/usr/bin/perl";
const SCRIPT: &str = include_str!("probe/probe.pl");

/// Its directory in the guest, readable for all users.
const FOLDER: &str = "/tmp/probe";

/// One request and the whole reply.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) request: String,
    pub(crate) answer: String,
}

impl Exchange {
    /// The status of an HTTP reply.
    pub(crate) fn status(&self) -> Option<u16> {
        self.answer
            .strip_prefix("HTTP/1.1 ")?
            .get(..3)?
            .parse()
            .ok()
    }
}

/// Copies the client into the guest.
pub(crate) async fn install(vm: &TestVm) {
    let mut ldd = Command::new("ldd");
    ldd.arg(PERL).stdout(Stdio::piped());
    let listed = succeed(ldd).await;
    let libraries = listed
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'));
    let script = vm.scratch().join("probe.pl");
    fs::write(&script, SCRIPT).unwrap();
    in_guest(vm, &format!("mkdir -p {FOLDER}")).await;
    let mut push = vm.cli(["push", PERL]);
    push.args(libraries)
        .arg(script)
        .arg(format!("{}:{FOLDER}/", vm.name()));
    succeed(push).await;
    in_guest(vm, &format!("chmod -R a+rX {FOLDER}")).await;
}

/// The shell command that runs the client for `socket`, such as `tcp 127.0.0.1 80`.
pub(crate) fn at(socket: &str) -> String {
    let perl = format!("{FOLDER}/ld-linux-x86-64.so.2 --library-path {FOLDER} {FOLDER}/perl");
    format!("LC_ALL=C {perl} {FOLDER}/probe.pl {socket}")
}

/// Makes these requests at `socket` as a user of the guest, each on a connection of its own.
pub(crate) async fn ask(vm: &TestVm, user: &str, socket: &str, requests: &[&str]) -> Vec<Exchange> {
    let script = format!("{} <<'END'\n{}\nEND\n", at(socket), requests.join("\n"));
    let said = as_user(vm, user, &script).await;
    let exchanges: Vec<Exchange> = said
        .lines()
        .filter_map(|line| line.split_once(" => "))
        .map(|(request, answer)| Exchange {
            request: request.to_owned(),
            answer: answer.to_owned(),
        })
        .collect();
    assert_eq!(exchanges.len(), requests.len(), "{socket}: {said}");
    exchanges
}

/// Makes one request at `socket` as a user of the guest.
pub(crate) async fn ask_once(vm: &TestVm, user: &str, socket: &str, request: &str) -> Exchange {
    ask(vm, user, socket, &[request]).await.remove(0)
}

/// Runs a shell script in the guest as one of its users, and gives what it printed.
pub(crate) async fn as_user(vm: &TestVm, user: &str, script: &str) -> String {
    let mut exec = vm.cli(["exec", "--user", user, vm.name(), "--", "sh", "-c"]);
    exec.arg(script);
    succeed(exec).await
}
