//! The built-in presets: metadata services of other clouds, one TOML file each.
//!
//! The agent serves them; the host takes from `[smbios]` the strings by which cloud-init in the guest
//! detects the cloud. The files are in `agent/metadata/presets/`, and `agent/metadata/README.md` describes them.

/// The built-in presets, by name, with their text in TOML.
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

/// The manufacturer of the board that our host sets in SMBIOS when the other strings are those of a cloud: by
/// it the agent detects that the cloud is not real.
pub const BOARD_MAKER: &str = "vsock-agent";

/// The text of a built-in preset.
#[must_use]
pub fn shipped(name: &str) -> Option<&'static str> {
    let mut presets = SHIPPED.iter();
    presets.find(|(own, _)| *own == name).map(|(_, text)| *text)
}
