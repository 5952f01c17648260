//! Who is let in, and whom the client believes.

use std::{fs, path::PathBuf, process::Output};

use harness::TestVm;

use crate::{OUR_FAULT, client_files, finish, shared};

#[tokio::test]
async fn client_with_another_key_is_refused() {
    let vm = shared().await;
    let identity = mixed_identity(vm, "other-client", &["client.crt", "client.key"]).await;
    assert_refused(&exec_as(vm, &identity).await);
}

#[tokio::test]
async fn client_refuses_another_agent() {
    let vm = shared().await;
    let identity = mixed_identity(vm, "other-agent", &["agent.crt"]).await;
    assert_refused(&exec_as(vm, &identity).await);
}

#[tokio::test]
async fn client_without_a_certificate_is_refused() {
    let vm = shared().await;
    let endpoint = vm.endpoint();
    assert_refused(&finish(vm.cli(["--plain", "exec", &endpoint, "--", "echo", "in"])).await);
}

async fn exec_as(vm: &TestVm, identity: &PathBuf) -> Output {
    let mut cli = vm.cli(["--identity"]);
    cli.arg(identity)
        .args(["exec", vm.name(), "--", "echo", "in"]);
    finish(cli).await
}

fn assert_refused(output: &Output) {
    assert_eq!(output.status.code(), OUR_FAULT, "{output:?}");
    assert!(
        output.stdout.is_empty() && !output.stderr.is_empty(),
        "{output:?}"
    );
}

/// Gives an identity in which the named files are a stranger's.
async fn mixed_identity(vm: &TestVm, name: &str, theirs: &[&str]) -> PathBuf {
    let [stranger, mixed] =
        ["stranger", "mixed"].map(|kind| vm.scratch().join(format!("{name}-{kind}")));
    let mut init = vm.cli(["identity", "init", vm.name(), "--dir"]);
    init.arg(&stranger);
    let output = finish(init).await;
    assert!(output.status.success(), "{output:?}");
    fs::create_dir(&mixed).unwrap();
    let (ours, theirs_all) = (vm.identity().unwrap(), client_files(&stranger, vm));
    for ((file, our_path), (_, their_path)) in client_files(ours, vm).into_iter().zip(theirs_all) {
        let from = if theirs.contains(&file) {
            their_path
        } else {
            our_path
        };
        fs::copy(from, mixed.join(file)).unwrap();
    }
    mixed
}
