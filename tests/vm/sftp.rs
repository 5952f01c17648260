//! Files, by OpenSSH's client over ours.

use std::{fs, process::Stdio};

use tokio::process::Command;

use crate::{assert_same_content, finish, in_guest, random_file, shared};

#[tokio::test]
async fn openssh_puts_and_gets_100_megabytes() {
    let vm = shared().await;
    let there = random_file(vm, "sftp-there", 100_000_000);
    let back = vm.scratch().join("sftp-back");
    let batch = vm.scratch().join("sftp-batch");
    let (local, remote) = (there.display(), "/tmp/sftp-file");
    fs::write(
        &batch,
        format!("put {local} {remote}\nget {remote} {}\n", back.display()),
    )
    .unwrap();

    let server = vm.cli(["sftp", "--stdio", vm.name()]);
    let words = [server.as_std().get_program()]
        .into_iter()
        .chain(server.as_std().get_args());
    let words: Vec<_> = words.map(|word| word.to_str().unwrap()).collect();
    let mut sftp = Command::new("sftp");
    sftp.arg("-b").arg(&batch).arg("-D").arg(words.join(" "));
    sftp.env("AGENT_CLI_CONFIG", vm.config())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let output = finish(sftp).await;
    assert!(output.status.success(), "{output:?}");
    assert_same_content(&there, &back);
    in_guest(vm, &format!("rm {remote}")).await;
}

#[tokio::test]
async fn push_and_pull_copy_a_file_in_and_out() {
    let vm = shared().await;
    let there = random_file(vm, "push-there", 1_000_000);
    let back = vm.scratch().join("push-back");
    let inside = format!("{}:/tmp/pushed", vm.name());
    for arguments in [
        ["push", there.to_str().unwrap(), &inside],
        ["pull", &inside, back.to_str().unwrap()],
    ] {
        let output = finish(vm.cli(arguments)).await;
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    }
    assert_same_content(&there, &back);
}
