//! Every preset: the guest that `agent-cli qemu-args` describes finds its data by the datasource of
//! that name, from the address on its loopback.

use harness::cloud_init::{RELEASES, Release};

use crate::{boot, data, guest, has_data, hints};

/// Boots a guest of each release with a preset.
fn reaches_done(preset: &str, datasource: &str, cloud: &str, address: &str) {
    for release in RELEASES {
        let (guest, _host) = guest(release, data("one"));
        let booted = boot(&guest, &hints(preset), &["--metadata", preset]);
        assert!(
            booted.found_first().starts_with(datasource),
            "{release:?}: {}",
            booted.story()
        );
        assert!(booted.read("addresses").contains(address));
        booted.is_done_by(&format!("DataSource{datasource}"), cloud);
        has_data(&guest, &booted, "one");
    }
}

const AMAZONS: &str = "169.254.169.254/32";

#[test]
fn ec2() {
    reaches_done("ec2", "Ec2", "aws", AMAZONS);
}

#[test]
fn ec2_with_tokens_only() {
    let (guest, _host) = guest(Release::Current, data("one"));
    let agent = ["--metadata", "ec2", "--metadata-token"];
    let booted = boot(&guest, &hints("ec2"), &agent);
    booted.is_done_by("DataSourceEc2", "aws");
    has_data(&guest, &booted, "one");
}

#[test]
fn brightbox() {
    reaches_done("brightbox", "Ec2", "brightbox", AMAZONS);
}

#[test]
fn e24cloud() {
    reaches_done("e24cloud", "Ec2", "e24cloud", AMAZONS);
}

#[test]
fn outscale() {
    reaches_done("outscale", "Ec2", "outscale", AMAZONS);
}

#[test]
fn zstack() {
    reaches_done("zstack", "Ec2", "zstack", AMAZONS);
}

#[test]
fn aliyun() {
    reaches_done("aliyun", "AliYun", "aliyun", "100.100.100.200/32");
}

#[test]
fn openstack() {
    reaches_done("openstack", "OpenStack", "openstack", AMAZONS);
}

#[test]
fn a_description_without_our_mark_is_a_real_cloud() {
    let (guest, _host) = guest(Release::Debian12, data("one"));
    let real = hints("openstack").without("board_vendor");
    let agent = ["--metadata", "openstack", "--guest-socket", "off"];
    // cloud-init waits for its cloud as long as it is told to.
    let pinned = "datasource: {OpenStack: {max_wait: 1, timeout: 1}}\n";
    guest.write("etc/cloud/cloud.cfg.d/95-wait.cfg", pinned);
    let booted = boot(&guest, &real, &agent);
    let log = booted.read("agent.log");
    assert!(log.contains("this is a real cloud"), "{log}");
    assert!(!booted.read("addresses").contains("169.254"), "{log}");
}
