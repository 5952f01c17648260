//! The shapes in which a network can be described, and what becomes of it.

use harness::cloud_init::RELEASES;

use crate::{boot, data, guest, has_data, hints};

/// What cloud-init makes of a network that is described so: its configuration for the machine.
fn rendered(config: Option<&str>) -> Vec<String> {
    let boots = RELEASES.map(|release| {
        let mut data = data("one");
        if let Some(config) = config {
            data.config
                .insert("cloud-init.network-config".to_owned(), config.to_owned());
        }
        let (guest, _host) = guest(release, data);
        guest.write(
            "etc/cloud/cloud.cfg.d/95-network.cfg",
            "system_info: {network: {renderers: [networkd]}}\n",
        );
        let booted = boot(&guest, &hints("lxd"), &[]);
        booted.is_done_by("DataSourceLXD", "lxd");
        has_data(&guest, &booted, "one");
        let file =
            |name: &str| guest.read(&format!("etc/systemd/network/10-cloud-init-{name}.network"));
        file("eth0") + &file("enp5s0")
    });
    boots.to_vec()
}

#[test]
fn cloud_init_applies_the_network_config() {
    let address = "10.9.0.77/24";
    let v1 = format!(
        "version: 1\nconfig:\n- type: physical\n  name: eth0\n  subnets:\n  - {{type: static, address: {address}}}\n"
    );
    let v2 = format!("version: 2\nethernets:\n  eth0: {{addresses: [{address}]}}\n");
    let indented: String = v2.lines().map(|line| format!("  {line}\n")).collect();
    for config in [v1, v2, format!("network:\n{indented}")] {
        for file in rendered(Some(&config)) {
            assert!(
                file.contains(&format!("Address={address}")),
                "{config}: {file}"
            );
        }
    }
}

#[test]
fn network_without_config_uses_dhcp() {
    for config in [None, Some("")] {
        for file in rendered(config) {
            assert!(file.contains("DHCP="), "{file}");
        }
    }
}

#[test]
fn a_network_can_be_left_alone() {
    assert_eq!(rendered(Some("config: disabled\n")), ["", ""]);
}
