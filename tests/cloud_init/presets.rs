//! Every preset: the guest that `agent-cli qemu-args` describes finds its data by the datasource of
//! that name, from the address on its loopback.

use harness::{
    HostData,
    cloud_init::{Guest, RELEASES, Release},
};

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
fn cloud_init_reads_ec2_with_tokens_only() {
    let (guest, _host) = guest(Release::Current, data("one"));
    let agent = ["--metadata", "ec2", "--metadata-token"];
    let booted = boot(&guest, &hints("ec2"), &agent);
    booted.is_done_by("DataSourceEc2", "aws");
    has_data(&guest, &booted, "one");
}

/// User-data that are a script, vendor-data with a key for a user of its own, and perhaps a network.
fn script_and_vendor(network: Option<&str>) -> HostData {
    let mut data = data("one");
    let mut set = |key: &str, value: &str| {
        data.config
            .insert(format!("cloud-init.{key}"), value.to_owned());
    };
    set("user-data", "#!/bin/sh\necho 'grüße ☃' >/root/script\n");
    set(
        "vendor-data",
        "#cloud-config\nusers:\n- default\n- name: ann\n  ssh_authorized_keys: [ssh-rsa AAAAvendor]\n\
         write_files:\n- {path: /root/vendor, content: there}\n",
    );
    if let Some(network) = network {
        set("network-config", network);
    }
    data
}

/// What a guest whose user-data are a script has of its vendor-data.
fn carries_vendor_data(preset: &str, network: Option<&str>) -> Vec<Guest> {
    let boots = RELEASES.map(|release| {
        let (guest, _host) = guest(release, script_and_vendor(network));
        guest.write(
            "etc/cloud/cloud.cfg.d/95-network.cfg",
            "system_info: {network: {renderers: [networkd]}}\n",
        );
        let booted = boot(&guest, &hints(preset), &["--metadata", preset]);
        assert_eq!(guest.read("root/script"), "grüße ☃\n", "{}", booted.story());
        assert_eq!(guest.read("root/vendor"), "there", "{}", booted.story());
        let keys = guest.read("home/ann/.ssh/authorized_keys");
        assert!(keys.contains("AAAAvendor"), "{keys}");
        let log = booted.read("agent.log");
        let is_lost = log.contains("does not support network-config");
        assert_eq!(is_lost, network.is_some() && preset != "openstack", "{log}");
        guest
    });
    boots.into()
}

#[test]
fn script_and_vendor_data_arrive_by_ec2() {
    let network = "version: 2\nethernets: {eth0: {addresses: [10.9.0.77/24]}}\n";
    carries_vendor_data("ec2", Some(network));
}

#[test]
fn script_and_vendor_data_arrive_by_aliyun() {
    carries_vendor_data("aliyun", None);
}

#[test]
fn vendor_data_and_a_network_arrive_by_openstack() {
    let network = "version: 2\nethernets:\n  eth0:\n    addresses: [10.9.0.77/24]\n    \
                   gateway4: 10.9.0.1\n    nameservers: {addresses: [10.9.0.2]}\n";
    for guest in carries_vendor_data("openstack", Some(network)) {
        let file = guest.read("etc/systemd/network/10-cloud-init-eth0.network");
        for line in ["Address=10.9.0.77/24", "Gateway=10.9.0.1", "DNS=10.9.0.2"] {
            assert!(file.contains(line), "{file}");
        }
    }
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
fn smbios_without_our_marker_means_a_real_cloud() {
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
