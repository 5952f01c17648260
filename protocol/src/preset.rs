//! Metadata services of other clouds, as they can be imitated for a guest: a file for each.
//!
//! The agent answers requests by them; the host takes from their `[smbios]` what cloud-init in the
//! guest knows the cloud by. `agent/src/presets/file.rs` says how they are written.

/// The presets that are shipped, by name, with their text in TOML.
pub const SHIPPED: [(&str, &str); 8] = [
    ("aliyun", include_str!("../presets/aliyun.toml")),
    ("brightbox", include_str!("../presets/brightbox.toml")),
    ("e24cloud", include_str!("../presets/e24cloud.toml")),
    ("ec2", include_str!("../presets/ec2.toml")),
    ("imds", include_str!("../presets/imds.toml")),
    ("openstack", include_str!("../presets/openstack.toml")),
    ("outscale", include_str!("../presets/outscale.toml")),
    ("zstack", include_str!("../presets/zstack.toml")),
];

/// What a host calls the maker of the mainboard when the rest of the machine's description says
/// that it is of a cloud: a guest that reads it knows that it is in none.
pub const BOARD_MAKER: &str = "vsock-agent";

/// The text of a preset that is shipped.
#[must_use]
pub fn shipped(name: &str) -> Option<&'static str> {
    let mut presets = SHIPPED.iter();
    presets.find(|(own, _)| *own == name).map(|(_, text)| *text)
}
