//! `qemu-args`: SMBIOS fields by which cloud-init detects its datasource. The fields of a cloud are
//! in its preset; the agent in the guest serves the data.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, bail};
use ring::digest::{SHA256, digest};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::json;
use uuid::Builder;
use vsock_agent_client::protocol::preset::{self, BOARD_MAKER};

use crate::{args::QemuArgsArgs, config::Settings, output};

/// Cloud-init detects LXD by this port from version 26.1 on, and by the board's name before.
const LXD_PORT: &str = "com.canonical.lxd";
const LXD_BOARD: &str = "LXD";

/// Cloud-init detects `NoCloud` by this serial number.
const NO_CLOUD_SERIAL: &str = "ds=nocloud";

/// The fields of each table that QEMU can set (`-smbios`, qemu(1)).
const SYSTEM: &str = "manufacturer, product, version, serial, uuid, sku, family";
const BOARD: &str = "manufacturer, product, version, serial, asset, location";
const CHASSIS: &str = "manufacturer, version, serial, asset, sku";

/// `agent-cli qemu-args`.
pub(crate) fn run(settings: &Settings, args: &QemuArgsArgs) -> anyhow::Result<u8> {
    let vm = settings.known(&args.vm)?;
    let arguments = arguments(vm, &host(), &args.datasource)?;
    if args.json {
        output::json(&json!(arguments))?
    } else {
        output::lines(&arguments)?
    }
    Ok(0)
}

type Fields = BTreeMap<String, String>;

/// The SMBIOS tables of a preset.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Smbios {
    system: Fields,
    board: Fields,
    chassis: Fields,
}

/// The part of a preset for the host.
#[derive(Debug, Deserialize)]
struct Preset {
    smbios: Option<Smbios>,
    #[serde(flatten)]
    _rest: BTreeMap<String, IgnoredAny>,
}

fn arguments(vm: &str, host: &str, datasource: &str) -> anyhow::Result<Vec<String>> {
    let fields = |key: &str, value: &str| Fields::from([(key.to_owned(), value.to_owned())]);
    let mut smbios = match datasource {
        "lxd" => Smbios {
            board: fields("product", LXD_BOARD),
            ..Smbios::default()
        },
        "nocloud" => Smbios {
            system: fields("serial", NO_CLOUD_SERIAL),
            ..Smbios::default()
        },
        _ => of_preset(datasource)?,
    };
    let start = smbios.system.get("uuid").map_or("", String::as_str);
    let uuid = uuid(vm, host, start)?;
    if let Some(own) = smbios.system.get_mut("uuid") {
        own.clone_from(&uuid);
    }
    // Shows the agent that the other fields are not those of a real cloud.
    let maker = smbios.board.entry("manufacturer".to_owned());
    BOARD_MAKER.clone_into(maker.or_default());
    let mut arguments = Vec::new();
    for (kind, fields, known) in [
        (1, smbios.system, SYSTEM),
        (2, smbios.board, BOARD),
        (3, smbios.chassis, CHASSIS),
    ] {
        if fields.is_empty() {
            continue;
        }
        let mut argument = format!("type={kind}");
        for (key, value) in fields {
            if !known.split(", ").any(|known| known == key) {
                bail!("{datasource}: SMBIOS table {kind} has no field {key}, only {known}");
            }
            let value = value.replace("${name}", vm).replace("${uuid}", &uuid);
            // QEMU reads two commas as one that does not end the value.
            argument += &format!(",{key}={}", value.replace(',', ",,"));
        }
        arguments.extend(["-smbios".to_owned(), argument]);
    }
    if datasource == "lxd" {
        let device = format!("virtserialport,chardev=vsock-agent-hint,name={LXD_PORT}");
        for (option, value) in [
            ("-device", "virtio-serial-pci"),
            ("-chardev", "null,id=vsock-agent-hint"),
            ("-device", &device),
        ] {
            arguments.extend([option.to_owned(), value.to_owned()]);
        }
    }
    Ok(arguments)
}

fn of_preset(name: &str) -> anyhow::Result<Smbios> {
    let file;
    let text = match preset::shipped(name) {
        Some(text) => text,
        None if name.contains('/') => {
            file = std::fs::read_to_string(Path::new(name))
                .with_context(|| format!("cannot read the preset {name}"))?;
            &file
        }
        None => bail!(
            "unknown datasource {name}: expected {} or a path",
            known().join(", ")
        ),
    };
    let preset: Preset =
        toml_edit::de::from_str(text).with_context(|| format!("the preset {name} is invalid"))?;
    preset.smbios.with_context(|| {
        format!("the preset {name} has no [smbios]: cloud-init cannot detect it by SMBIOS fields")
    })
}

/// The names of datasources, without paths.
fn known() -> Vec<&'static str> {
    let shipped = preset::SHIPPED.iter().map(|(name, _)| *name);
    let usable = shipped.filter(|name| of_preset(name).is_ok());
    ["lxd", "nocloud"].into_iter().chain(usable).collect()
}

/// The id of this host (`machine-id(5)`); empty if it has none.
fn host() -> String {
    std::fs::read_to_string("/etc/machine-id").unwrap_or_default()
}

/// Derives the UUID of a virtual machine from its name and its host. It starts with `start`.
fn uuid(vm: &str, host: &str, start: &str) -> anyhow::Result<String> {
    let hash = digest(&SHA256, format!("{host}\n{vm}").as_bytes());
    let bytes = hash.as_ref().first_chunk().context("a hash has 32 bytes")?;
    let whole = Builder::from_custom_bytes(*bytes).into_uuid().to_string();
    let rest = whole.get(start.len()..).filter(|_| start.len() <= 8);
    let is_hex = start.bytes().all(|byte| byte.is_ascii_hexdigit());
    match rest.filter(|_| is_hex) {
        Some(rest) => Ok(format!("{start}{rest}")),
        None => bail!("no UUID can start with {start:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(datasource: &str) -> String {
        arguments("vm", "host", datasource).unwrap().join(" ")
    }

    #[test]
    fn each_datasource_has_its_smbios_fields() {
        let board = "-smbios type=2,manufacturer=vsock-agent";
        for (datasource, expected) in [
            (
                "nocloud",
                format!("-smbios type=1,serial=ds=nocloud {board}"),
            ),
            (
                "brightbox",
                format!("-smbios type=1,serial=vm.brightbox.com {board}"),
            ),
            (
                "e24cloud",
                format!("-smbios type=1,manufacturer=e24cloud {board}"),
            ),
            (
                "outscale",
                format!("-smbios type=1,manufacturer=3DS Outscale,product=3DS Outscale VM {board}"),
            ),
            (
                "zstack",
                format!("{board} -smbios type=3,asset=vm.zstack.io"),
            ),
            (
                "aliyun",
                format!("-smbios type=1,product=Alibaba Cloud ECS {board}"),
            ),
            (
                "openstack",
                format!("-smbios type=1,product=OpenStack Nova {board}"),
            ),
        ] {
            assert_eq!(of(datasource), expected);
        }
        let lxd = of("lxd");
        assert!(lxd.starts_with(&format!("{board},product=LXD -device virtio-serial-pci ")));
        assert!(lxd.ends_with("name=com.canonical.lxd"), "{lxd}");
    }

    #[test]
    fn the_ec2_uuid_is_stable_per_vm_and_host_and_is_the_serial_number() {
        let ec2 = of("ec2");
        let uuid = ec2.split("uuid=").nth(1).unwrap();
        let uuid = uuid.split(' ').next().unwrap();
        assert!(uuid.starts_with("ec2"), "{ec2}");
        assert_eq!(uuid::Uuid::parse_str(uuid).unwrap().to_string(), uuid);
        assert!(ec2.contains(&format!("serial={uuid},")), "{ec2}");
        assert_eq!(of("ec2"), ec2);
        assert_ne!(arguments("other", "host", "ec2").unwrap().join(" "), ec2);
        assert_ne!(arguments("vm", "other", "ec2").unwrap().join(" "), ec2);
    }

    #[test]
    fn datasources_without_smbios_fields_are_refused() {
        for datasource in ["imds", "azure", "/nowhere/x.toml"] {
            arguments("vm", "host", datasource).unwrap_err();
        }
        assert_eq!(known().len(), 9);
    }

    #[test]
    fn a_preset_file_is_read_and_commas_are_doubled() {
        let path = std::env::temp_dir().join(format!("qemu-args-{}.toml", std::process::id()));
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            arguments("vm", "host", path.to_str().unwrap())
        };
        let text = "address = \"1.2.3.4\"\n[smbios.board]\nproduct = \"a, b\"\n";
        assert_eq!(
            read(text).unwrap().join(" "),
            "-smbios type=2,manufacturer=vsock-agent,product=a,, b"
        );
        for wrong in [
            "",
            "[smbios.system]\nasset = \"a\"\n",
            "[smbios.disk]\n",
            "[smbios.system]\nuuid = \"xyz\"\n",
        ] {
            read(wrong).unwrap_err();
        }
        std::fs::remove_file(&path).unwrap();
    }
}
