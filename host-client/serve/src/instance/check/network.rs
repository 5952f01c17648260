//! Checks whether cloud-init can use a network configuration. Refuses the forms that make it fail,
//! which leaves a guest without any network.
//!
//! Each was tried with cloud-init 22.4.2 (`network_state.parse_net_config_data`). Keys of an interface
//! that only netplan knows are not checked.

use super::{CheckError, require};
use crate::instance::yaml::{Content, Node};

/// The keys of version 2 with interfaces. They are netplan's; cloud-init's own renderers support the
/// first four.
const INTERFACES: [&str; 11] = [
    "ethernets",
    "bonds",
    "bridges",
    "vlans",
    "wifis",
    "dummy-devices",
    "modems",
    "nm-devices",
    "tunnels",
    "virtual-ethernets",
    "vrfs",
];

/// The types of entries of version 1 (`handle_*` of cloud-init's `network_state.py`).
const TYPES: [&str; 8] = [
    "bond",
    "bridge",
    "infiniband",
    "loopback",
    "nameserver",
    "physical",
    "route",
    "vlan",
];

/// Checks the root of a network configuration.
///
/// # Errors
///
/// [`CheckError::Kind`] with the required form.
pub(super) fn check(root: &Node) -> Result<(), CheckError> {
    super::mapping(root)?;
    let body = root.get("network").unwrap_or(root);
    require(body.is_mapping(), "a mapping below 'network'")?;
    if is_word(body.get("config"), "disabled") {
        return Ok(());
    }
    match body.get("version") {
        version if is_word(version, "1") => version_1(body),
        version if is_word(version, "2") => version_2(body),
        _ => Err(CheckError::Kind(
            "a network configuration with 'version: 1' or 'version: 2' (without quotes), or with \
             'config: disabled'",
        )),
    }
}

/// Whether the value is this word, without quotes.
fn is_word(value: Option<&Node>, word: &str) -> bool {
    value.is_some_and(
        |value| matches!(&value.content, Content::Scalar { text, plain: true } if text == word),
    )
}

fn version_1(body: &Node) -> Result<(), CheckError> {
    let Some(Content::Sequence(entries)) = body.get("config").map(|config| &config.content) else {
        return Err(CheckError::Kind("version 1 with a list below 'config'"));
    };
    let is_known = |entry: &Node| {
        let kind = entry.get("type").and_then(Node::as_text);
        entry.is_alias() || kind.is_some_and(|kind| TYPES.contains(&kind))
    };
    require(
        entries.iter().all(is_known),
        "version 1 with a 'type' for each entry of 'config': bond, bridge, infiniband, \
         loopback, nameserver, physical, route or vlan",
    )
}

fn version_2(body: &Node) -> Result<(), CheckError> {
    for (key, value) in body.pairs() {
        match key.as_text() {
            Some("version" | "renderer" | "<<") => {}
            Some("openvswitch") => mapping(value)?,
            Some(key) if INTERFACES.contains(&key) => interfaces(value)?,
            _ => {
                return Err(CheckError::Kind(
                    "version 2 with only version, renderer, ethernets, bonds, bridges, vlans, wifis \
                     and netplan's other kinds of interfaces",
                ));
            }
        }
    }
    Ok(())
}

fn interfaces(value: &Node) -> Result<(), CheckError> {
    mapping(value)?;
    for (_, interface) in value.pairs() {
        mapping(interface)?;
        for key in ["match", "nameservers"] {
            interface.get(key).map_or(Ok(()), mapping)?;
        }
        for value in ["addresses", "routes"]
            .iter()
            .filter_map(|key| interface.get(key))
        {
            require(
                value.is_alias() || matches!(value.content, Content::Sequence(_)),
                "version 2 with lists of addresses and of routes",
            )?;
        }
    }
    Ok(())
}

fn mapping(value: &Node) -> Result<(), CheckError> {
    require(
        value.is_alias() || value.is_mapping(),
        "version 2 with a mapping for each kind of interface, each interface, and its match and \
         nameservers ({} for an empty one)",
    )
}

#[cfg(test)]
mod tests {
    use crate::instance::yaml;

    #[test]
    fn network_configurations_for_cloud_init_are_accepted() {
        for text in [
            "version: 2",
            "version: 2\nethernets: {}",
            "version: 2\nethernets: {eth0: {dhcp4: true}}",
            "version: 2\nrenderer: networkd\nwifis: {}",
            "version: 2\nethernets:\n  eth0: &e {addresses: [10.0.0.1/24], match: {name: 'e*'}}\n  eth1: *e",
            "network: {version: 2, ethernets: {eth0: {routes: [{to: default, via: 10.0.0.1}]}}}",
            "network: {config: disabled}",
            "config: disabled",
            "version: 1\nconfig: []",
            "version: 1\nconfig:\n- type: physical\n  name: eth0\n- {type: nameserver, address: 1.1.1.1}",
        ] {
            let root = yaml::parse(text).unwrap().unwrap();
            assert_eq!(super::check(&root), Ok(()), "{text}");
        }
    }

    #[test]
    fn network_configurations_that_make_cloud_init_fail_are_refused() {
        for text in [
            "{}",
            "foo: bar",
            "network: {}",
            "network: text",
            "network:",
            "version: 3",
            "version: '2'",
            "version: true",
            "version: 1",
            "version: 1\nconfig: x",
            "version: 1\nconfig: [x]",
            "version: 1\nconfig: [{name: eth0}]",
            "version: 1\nconfig: [{type: foo}]",
            "version: 2\nfoo: {}",
            "version: 2\nethernets:",
            "version: 2\nethernets: []",
            "version: 2\nethernets: {eth0: }",
            "version: 2\nethernets: {eth0: x}",
            "version: 2\nbonds: {b: }",
            "version: 2\nethernets: {eth0: {match: x}}",
            "version: 2\nethernets: {eth0: {nameservers: [8.8.8.8]}}",
            "version: 2\nethernets: {eth0: {addresses: 10.0.0.1/24}}",
            "version: 2\nethernets: {eth0: {routes: {to: x}}}",
        ] {
            let root = yaml::parse(text).unwrap().unwrap();
            super::check(&root).expect_err(text);
        }
    }
}
