//! A stranger in the guest: it shares no code with the product, and knocks at whatever door it is
//! told. It is this computer's perl, which Debian always has, with the libraries it needs.

use std::{fs, process::Stdio};

use harness::TestVm;
use tokio::process::Command;

use crate::{in_guest, succeed};

/// What runs in the guest.
const PERL: &str = "/usr/bin/perl";
const SCRIPT: &str = include_str!("knock/knock.pl");

/// Where the guest has it, for all its users.
const FOLDER: &str = "/tmp/knock";

/// One request at a door and all that came back.
#[derive(Debug)]
pub(crate) struct Knock {
    pub(crate) request: String,
    pub(crate) answer: String,
}

impl Knock {
    /// The status of an answer in HTTP.
    pub(crate) fn status(&self) -> Option<u16> {
        self.answer
            .strip_prefix("HTTP/1.1 ")?
            .get(..3)?
            .parse()
            .ok()
    }
}

/// Puts the stranger into the guest.
pub(crate) async fn install(vm: &TestVm) {
    let mut ldd = Command::new("ldd");
    ldd.arg(PERL).stdout(Stdio::piped());
    let listed = succeed(ldd).await;
    let libraries = listed
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'));
    let script = vm.scratch().join("knock.pl");
    fs::write(&script, SCRIPT).unwrap();
    in_guest(vm, &format!("mkdir -p {FOLDER}")).await;
    let mut push = vm.cli(["push", PERL]);
    push.args(libraries)
        .arg(script)
        .arg(format!("{}:{FOLDER}/", vm.name()));
    succeed(push).await;
    in_guest(vm, &format!("chmod -R a+rX {FOLDER}")).await;
}

/// The command in the guest that knocks at `door`, such as `tcp 127.0.0.1 80`.
pub(crate) fn at(door: &str) -> String {
    let perl = format!("{FOLDER}/ld-linux-x86-64.so.2 --library-path {FOLDER} {FOLDER}/perl");
    format!("LC_ALL=C {perl} {FOLDER}/knock.pl {door}")
}

/// Makes these requests at `door` as a user of the guest, each on a connection of its own.
pub(crate) async fn ask(vm: &TestVm, user: &str, door: &str, requests: &[&str]) -> Vec<Knock> {
    let script = format!("{} <<'END'\n{}\nEND\n", at(door), requests.join("\n"));
    let said = as_user(vm, user, &script).await;
    let knocks: Vec<Knock> = said
        .lines()
        .filter_map(|line| line.split_once(" => "))
        .map(|(request, answer)| Knock {
            request: request.to_owned(),
            answer: answer.to_owned(),
        })
        .collect();
    assert_eq!(knocks.len(), requests.len(), "{door}: {said}");
    knocks
}

/// Makes one request at `door` as a user of the guest.
pub(crate) async fn ask_once(vm: &TestVm, user: &str, door: &str, request: &str) -> Knock {
    ask(vm, user, door, &[request]).await.remove(0)
}

/// Runs a shell script in the guest as one of its users, and gives what it printed.
pub(crate) async fn as_user(vm: &TestVm, user: &str, script: &str) -> String {
    let mut exec = vm.cli(["exec", "--user", user, vm.name(), "--", "sh", "-c"]);
    exec.arg(script);
    succeed(exec).await
}
