//! The agent starts when cloud-init has begun, and may reboot the machine for that.

use crate::{
    READY_TIMEOUT, assert_sound, boot, configured,
    data::{assert_applied, give},
    in_guest, power_off,
};

/// Has the agent start after cloud-init's first stage, in boots after this.
const COME_LATE: &str = "
sed -i -e '/^Before=cloud-init-local/d' -e 's/^Before=sysinit.target/Before=/' \\
    -e 's/^After=/After=cloud-init-local.service /' /etc/systemd/system/vsock-agent.service
";

#[tokio::test]
async fn new_data_that_come_too_late_have_one_reboot() {
    let config = format!(
        "host = \"vsock:2:8444\"\ncloud-init = \"nocloud\"\ncloud-init-reboot = true\n\
         ready-timeout = {READY_TIMEOUT}\n"
    );
    let mut vm = configured("late", config, false).await;
    give(&vm, "erste").await;
    let _host = vm.serve().unwrap();
    assert_eq!(boot(&mut vm).await, "running");
    assert_sound(&vm, 1, "NoCloud, LXD, None").await;
    let log = "cat /var/lib/vsock-agent/cloud-init-reboots || true";
    assert_eq!(in_guest(&vm, log).await, "");
    in_guest(&vm, COME_LATE).await;
    power_off(&mut vm).await;

    give(&vm, "zweite").await;
    // QEMU ends where others would start again.
    vm.boot().await.unwrap();
    vm.wait_off().await.unwrap();

    // What was too late is there from the start now, and the agent as late as before.
    assert_eq!(boot(&mut vm).await, "running");
    assert_sound(&vm, 3, "NoCloud, None").await;
    assert_applied(&vm, &["erste", "zweite"]).await;
    let id = in_guest(&vm, "cat /var/lib/cloud/data/instance-id").await;
    assert_eq!(in_guest(&vm, log).await, format!("reboot \"{id}\"\ndone"));
}
