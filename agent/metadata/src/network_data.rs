//! Converts a network configuration to `OpenStack`'s `network_data.json`: `links`, `networks` and
//! `services`.
//!
//! Supports both versions of cloud-init's configuration, limited to Ethernet devices, addresses, routes
//! and name servers.
//! <https://docs.openstack.org/nova/latest/user/metadata.html>

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use crate::yaml::{self, Node};

/// The document. `None` if the configuration has something that it cannot express, or a device whose
/// hardware address is not known. `nics` are the machine's devices, for those configured by name.
pub(crate) fn of(config: &str, nics: &[Value]) -> Option<Value> {
    let root = yaml::parse(config).ok()??;
    let root = root.get("network").unwrap_or(&root);
    let mut document = Document {
        nics,
        ..Document::default()
    };
    match root.get("version")?.text()? {
        "1" => document.version_1(root)?,
        "2" => document.version_2(root)?,
        _ => return None,
    }
    Some(json!({
        "links": document.links,
        "networks": document.networks,
        "services": document.services,
    }))
}

#[derive(Debug, Default)]
struct Document<'a> {
    nics: &'a [Value],
    links: Vec<Value>,
    networks: Vec<Value>,
    services: Vec<Value>,
}

impl Document<'_> {
    fn version_2(&mut self, root: &Node) -> Option<()> {
        let known = ["version", "ethernets", "renderer"];
        only(root, &known)?;
        for (name, device) in root.get("ethernets")?.entries() {
            let known = [
                "match",
                "set-name",
                "dhcp4",
                "dhcp6",
                "addresses",
                "gateway4",
                "gateway6",
                "routes",
                "nameservers",
                "mtu",
                "optional",
            ];
            only(device, &known)?;
            let own = device.get("match").map(|found| found.get("macaddress"));
            let mac = match own {
                Some(mac) => mac?.text()?.to_owned(),
                None => self.mac(name)?,
            };
            self.link(name, &mac, device.get("mtu"));
            for (key, kind) in [("dhcp4", "ipv4_dhcp"), ("dhcp6", "ipv6_dhcp")] {
                if device.get(key).and_then(Node::truth) == Some(true) {
                    self.network(name, json!({ "type": kind }));
                }
            }
            let mut routes = Vec::new();
            for (key, all) in [("gateway4", "0.0.0.0/0"), ("gateway6", "::/0")] {
                if let Some(gateway) = device.get(key) {
                    routes.push((all, gateway.text()?));
                }
            }
            for route in device.get("routes").into_iter().flat_map(Node::items) {
                only(route, &["to", "via"])?;
                routes.push((route.get("to")?.text()?, route.get("via")?.text()?));
            }
            let addresses = device.get("addresses").into_iter().flat_map(Node::items);
            let addresses: Option<Vec<_>> = addresses.map(Node::text).collect();
            self.addresses(name, &addresses?, &routes)?;
            for server in device
                .get("nameservers")
                .and_then(|n| n.get("addresses"))
                .into_iter()
                .flat_map(Node::items)
            {
                self.name_server(server)?;
            }
        }
        Some(())
    }

    fn version_1(&mut self, root: &Node) -> Option<()> {
        for device in root.get("config")?.items() {
            match device.get("type")?.text()? {
                "physical" => {}
                "nameserver" => {
                    let address = device.get("address")?;
                    match address.text() {
                        Some(_) => self.name_server(address)?,
                        None => address.items().try_for_each(|one| self.name_server(one))?,
                    }
                    continue;
                }
                _ => return None,
            }
            only(device, &["type", "name", "mac_address", "mtu", "subnets"])?;
            let name = device.get("name")?.text()?;
            let mac = match device.get("mac_address").and_then(Node::text) {
                Some(mac) => mac.to_owned(),
                None => self.mac(name)?,
            };
            self.link(name, &mac, device.get("mtu"));
            for subnet in device.get("subnets").into_iter().flat_map(Node::items) {
                self.subnet(name, subnet)?;
            }
        }
        Some(())
    }

    fn subnet(&mut self, name: &str, subnet: &Node) -> Option<()> {
        only(
            subnet,
            &[
                "type",
                "address",
                "netmask",
                "gateway",
                "dns_nameservers",
                "routes",
            ],
        )?;
        match subnet.get("type")?.text()? {
            "dhcp" | "dhcp4" => self.network(name, json!({ "type": "ipv4_dhcp" })),
            "dhcp6" => self.network(name, json!({ "type": "ipv6_dhcp" })),
            "static" | "static6" => {
                let address = subnet.get("address")?.text()?;
                let address = match subnet.get("netmask") {
                    Some(mask) if !address.contains('/') => {
                        let mask: IpAddr = mask.text()?.parse().ok()?;
                        format!("{address}/{}", ones(mask))
                    }
                    _ => address.to_owned(),
                };
                let mut routes = Vec::new();
                if let Some(gateway) = subnet.get("gateway") {
                    let all = if address.contains(':') {
                        "::/0"
                    } else {
                        "0.0.0.0/0"
                    };
                    routes.push((all, gateway.text()?));
                }
                for route in subnet.get("routes").into_iter().flat_map(Node::items) {
                    only(route, &["destination", "network", "gateway"])?;
                    let to = route.get("destination").or_else(|| route.get("network"))?;
                    routes.push((to.text()?, route.get("gateway")?.text()?));
                }
                self.addresses(name, &[&address], &routes)?;
            }
            _ => return None,
        }
        for server in subnet
            .get("dns_nameservers")
            .into_iter()
            .flat_map(Node::items)
        {
            self.name_server(server)?;
        }
        Some(())
    }

    fn mac(&self, name: &str) -> Option<String> {
        let nic = self
            .nics
            .iter()
            .find(|nic| nic.get("name").is_some_and(|own| own == name))?;
        Some(nic.get("mac")?.as_str()?.to_owned())
    }

    fn link(&mut self, name: &str, mac: &str, mtu: Option<&Node>) {
        let mtu = mtu.and_then(|mtu| mtu.text()?.parse::<u32>().ok());
        let mac = mac.to_ascii_lowercase();
        let mut link = json!({ "id": name, "type": "phy", "ethernet_mac_address": mac });
        if let (Some(mtu), Some(link)) = (mtu, link.as_object_mut()) {
            link.insert("mtu".to_owned(), mtu.into());
        }
        self.links.push(link);
    }

    fn network(&mut self, link: &str, mut network: Value) {
        let id = format!("network{}", self.networks.len());
        if let Some(network) = network.as_object_mut() {
            network.insert("id".to_owned(), id.into());
            network.insert("network_id".to_owned(), link.into());
            network.insert("link".to_owned(), link.into());
        }
        self.networks.push(network);
    }

    /// Addresses of a device, and routes by their destination and gateway, which go with the first
    /// address of their family.
    fn addresses(&mut self, link: &str, addresses: &[&str], routes: &[(&str, &str)]) -> Option<()> {
        let mut left = routes.to_vec();
        for address in addresses {
            let (ip, mask) = network(address)?;
            let mut own = Vec::new();
            for (to, via) in std::mem::take(&mut left) {
                let via_ip: IpAddr = via.parse().ok()?;
                if via_ip.is_ipv4() != ip.is_ipv4() {
                    left.push((to, via));
                    continue;
                }
                let to = match to {
                    "default" if ip.is_ipv4() => "0.0.0.0/0",
                    "default" => "::/0",
                    to => to,
                };
                let (to, mask) = network(to)?;
                own.push(json!({ "network": to, "netmask": mask, "gateway": via_ip }));
            }
            let kind = match ip {
                IpAddr::V4(_) => "ipv4",
                IpAddr::V6(_) => "ipv6",
            };
            let network = json!({ "type": kind, "ip_address": ip, "netmask": mask, "routes": own });
            self.network(link, network);
        }
        left.is_empty().then_some(())
    }

    fn name_server(&mut self, server: &Node) -> Option<()> {
        let address: IpAddr = server.text()?.parse().ok()?;
        self.services
            .push(json!({ "type": "dns", "address": address }));
        Some(())
    }
}

/// Nothing, unless the map has other keys than these.
fn only(map: &Node, known: &[&str]) -> Option<()> {
    map.entries()
        .all(|(key, _)| known.contains(&key))
        .then_some(())
}

/// An address and its mask, of `10.0.0.1/24`.
fn network(text: &str) -> Option<(IpAddr, IpAddr)> {
    let (ip, bits) = text.split_once('/')?;
    let (ip, bits): (IpAddr, u32) = (ip.parse().ok()?, bits.parse().ok()?);
    let mask = match ip {
        IpAddr::V4(_) if bits <= 32 => {
            Ipv4Addr::from(u32::MAX.checked_shl(32 - bits).unwrap_or_default()).into()
        }
        IpAddr::V6(_) if bits <= 128 => {
            Ipv6Addr::from(u128::MAX.checked_shl(128 - bits).unwrap_or_default()).into()
        }
        _ => return None,
    };
    Some((ip, mask))
}

/// How many bits of a mask are set.
fn ones(mask: IpAddr) -> u32 {
    match mask {
        IpAddr::V4(mask) => u32::from(mask).count_ones(),
        IpAddr::V6(mask) => u128::from(mask).count_ones(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::instance;

    fn nics() -> Vec<Value> {
        instance::nics(&instance::tests::instance())
    }

    fn links() -> Value {
        json!([{ "id": "eth0", "type": "phy", "ethernet_mac_address": "00:16:3e:00:00:01" }])
    }

    #[test]
    fn both_versions_are_told_in_openstacks_words() {
        let network = json!([{
            "id": "network0", "network_id": "eth0", "link": "eth0", "type": "ipv4",
            "ip_address": "10.9.0.77", "netmask": "255.255.255.0",
            "routes": [{ "network": "0.0.0.0", "netmask": "0.0.0.0", "gateway": "10.9.0.1" }],
        }]);
        let expected = json!({
            "links": links(), "networks": network,
            "services": [{ "type": "dns", "address": "10.9.0.2" }],
        });
        for config in [
            "version: 2\nethernets:\n  eth0:\n    addresses: [10.9.0.77/24]\n    gateway4: 10.9.0.1\n    \
             nameservers: {addresses: [10.9.0.2]}\n",
            "network:\n  version: 2\n  ethernets:\n    eth0:\n      match: {macaddress: '00:16:3E:00:00:01'}\n      \
             addresses: [10.9.0.77/24]\n      routes: [{to: default, via: 10.9.0.1}]\n      \
             nameservers: {addresses: [10.9.0.2]}\n",
            "version: 1\nconfig:\n- type: physical\n  name: eth0\n  subnets:\n  - type: static\n    \
             address: 10.9.0.77\n    netmask: 255.255.255.0\n    gateway: 10.9.0.1\n\
             - {type: nameserver, address: 10.9.0.2}\n",
        ] {
            assert_eq!(of(config, &nics()), Some(expected.clone()), "{config}");
        }
    }

    #[test]
    fn addresses_of_both_families_have_their_own_routes() {
        let config = "version: 2\nethernets:\n  eth0:\n    dhcp4: true\n    addresses: ['2001:db8::7/64']\n    \
                      gateway6: 'fe80::1'\n";
        let found = of(config, &nics()).unwrap();
        assert_eq!(found["networks"][0]["type"], "ipv4_dhcp");
        let second = &found["networks"][1];
        assert_eq!(second["netmask"], "ffff:ffff:ffff:ffff::");
        assert_eq!(second["routes"][0]["gateway"], "fe80::1");
    }

    #[test]
    fn what_has_no_way_is_nothing() {
        for config in [
            "",
            "config: disabled\n",
            "version: 3\n",
            "version: 2\nbonds: {}\nethernets: {}\n",
            "version: 2\nethernets: {eth9: {dhcp4: true}}\n",
            "version: 2\nethernets: {eth0: {addresses: [10.9.0.77]}}\n",
            "version: 2\nethernets: {eth0: {addresses: [10.9.0.77/33]}}\n",
            "version: 2\nethernets: {eth0: {gateway4: 10.9.0.1}}\n",
            "version: 2\nethernets: {eth0: {wakeonlan: true}}\n",
            "version: 1\nconfig:\n- {type: bond, name: bond0}\n",
        ] {
            assert_eq!(of(config, &nics()), None, "{config}");
        }
    }
}
