//! Level 3: the product as it is shipped, in a real virtual machine, by the command line.
//!
//! Most tests share one VM; what restarts or breaks something has its own. The guests' consoles
//! are in `target/lab/log/`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test stops at the first surprise"
)]

mod exec;
mod files;
mod footprint;
mod hung;
mod loopback;
mod matrix;
mod permissions;
mod probe;
mod restart;
mod running;
mod serve;
mod sftp;
mod shell;
mod stock;
mod trust;

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::Output,
    time::Duration,
};

use harness::{TestVm, eventually, vm::VmOptions};
use tokio::{process::Command, sync::OnceCell, time::timeout};
use vsock_agent_client::{Client, Identity, IdentityFiles, Security};

/// Longest that any one command may take: 100 MB need half a minute where the VM is emulated.
const PATIENCE: Duration = Duration::from_secs(180);

/// Time for instance data to get into a guest.
const DATA_TIMEOUT: Duration = Duration::from_secs(60);

/// What `agent-cli` returns when the fault is not the command's.
const OUR_FAULT: Option<i32> = Some(125);

/// Gives the VM that is shared. It ends with this process.
async fn shared() -> &'static TestVm {
    static VM: OnceCell<TestVm> = OnceCell::const_new();
    VM.get_or_init(async || {
        let options = VmOptions {
            memory_mib: 1024,
            ..VmOptions::new("shared")
        };
        TestVm::start(options).await.unwrap()
    })
    .await
}

/// Runs a command to its end.
async fn finish(mut command: Command) -> Output {
    // Not `output`, which would put pipes in the place of files.
    let output = command.spawn().unwrap().wait_with_output();
    timeout(PATIENCE, output)
        .await
        .expect("the command ends in time")
        .unwrap()
}

/// Runs a command, which must succeed, and gives what it printed.
async fn succeed(command: Command) -> String {
    let what = format!("{:?}", command.as_std());
    let output = finish(command).await;
    assert!(output.status.success(), "{what}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a shell script in the guest, which must succeed, and gives what it printed.
async fn in_guest(vm: &TestVm, script: &str) -> String {
    succeed(vm.exec(["sh", "-c", script])).await
}

/// Waits until the guest has its instance data.
async fn wait_data(vm: &TestVm) {
    let test = "test -S /dev/lxd/sock && echo yes || echo no";
    let has_socket = async || in_guest(vm, test).await == "yes\n";
    assert!(eventually(DATA_TIMEOUT, has_socket).await);
}

/// Writes a file of random bytes and gives its path.
fn random_file(vm: &TestVm, name: &str, bytes: u64) -> PathBuf {
    let path = vm.scratch().join(name);
    let mut random = fs::File::open("/dev/urandom").unwrap().take(bytes);
    std::io::copy(&mut random, &mut fs::File::create(&path).unwrap()).unwrap();
    path
}

/// Gives what a client of this VM needs of the identity in `folder`: names, and where they are.
fn client_files(folder: &Path, vm: &TestVm) -> [(&'static str, PathBuf); 3] {
    [
        ("client.crt", folder.join("client.crt")),
        ("client.key", folder.join("client.key")),
        ("agent.crt", folder.join(vm.name()).join("agent.crt")),
    ]
}

/// Gives the library's client of this VM.
fn client_of(vm: &TestVm) -> Client {
    let [certificate, key, agent] = client_files(vm.identity().unwrap(), vm).map(|(_, path)| path);
    let files = IdentityFiles {
        certificate,
        key,
        agent,
    };
    let identity = Identity::from_pem(&files.read().unwrap()).unwrap();
    Client::new(vm.endpoint().parse().unwrap(), Security::Tls(identity))
}

/// Compares two files, without printing them if they differ.
fn assert_same_content(one: &PathBuf, other: &PathBuf) {
    let (left, right) = (fs::read(one).unwrap(), fs::read(other).unwrap());
    assert_eq!(
        left.len(),
        right.len(),
        "sizes of {} and {}",
        one.display(),
        other.display()
    );
    assert!(
        left == right,
        "{} and {} differ",
        one.display(),
        other.display()
    );
}
