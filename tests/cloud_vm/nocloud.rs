//! cloud-init reads a seed that the agent writes.

use harness::TestVm;

use crate::{
    Source, assert_sound, boot,
    data::{assert_applied, give},
    in_guest, is_kicked, machine, power_off,
};

/// Checks the first boot, in which the seed comes after cloud-init looked for one.
async fn boot_first(vm: &mut TestVm) {
    give(vm, "erste").await;
    assert_eq!(boot(vm).await, "running");
    assert_sound(vm, 1, "NoCloud, LXD, None").await;
    assert_applied(vm, &["erste"]).await;
    assert!(is_kicked(vm).await);
    let source = in_guest(vm, "cloud-init query v1.subplatform").await;
    assert_eq!(source, "seed-dir (/var/lib/cloud/seed/nocloud)");
}

#[tokio::test]
async fn nocloud_seed_is_found_in_first_and_later_boots() {
    let mut vm = machine("seed-plain", Source::NoCloud, false).await;
    let _host = vm.serve().unwrap();
    boot_first(&mut vm).await;

    // New data come after cloud-init decided to read the seed, and before it does.
    power_off(&mut vm).await;
    give(&vm, "zweite").await;
    assert_eq!(boot(&mut vm).await, "running");
    assert_sound(&vm, 2, "NoCloud, None").await;
    assert_applied(&vm, &["erste", "zweite"]).await;
    assert!(!is_kicked(&vm).await);
}

#[tokio::test]
async fn nocloud_seed_precedes_a_hinted_lxd_socket() {
    let mut vm = machine("seed", Source::NoCloud, true).await;
    let _host = vm.serve().unwrap();
    boot_first(&mut vm).await;
}
