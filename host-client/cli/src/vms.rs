//! `vm`: adds, removes and lists the names of virtual machines.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use serde_json::json;
use toml_edit::{DocumentMut, Item, Table, TableLike, value};
use vsock_agent_client::Endpoint;
use vsock_agent_files::write_whole;

use crate::{
    args::{AddArgs, VmCommand},
    config::{Settings, is_name, parse, read_or_empty},
    output,
};

/// `agent-cli vm`.
pub(crate) fn run(settings: &Settings, command: VmCommand) -> anyhow::Result<u8> {
    match command {
        VmCommand::List { format } => list(settings, format.is_json())?,
        VmCommand::Add(args) => {
            let global = &settings.global;
            // Absolute, because later runs have other working directories.
            let identity = global.identity.as_ref().map(std::path::absolute);
            let identity = identity.transpose()?;
            edit(settings.path()?, |document| {
                add(document, &args, identity.as_deref(), global.plain)
            })?
        }
        VmCommand::Remove { name } => {
            if !settings.names().any(|known| known == name) {
                return Err(settings.unknown(&name));
            }
            edit(settings.path()?, |document| remove(document, &name))?;
            if is_name(&name) {
                settings.instances()?.remove(&name)?;
            }
        }
    }
    Ok(0)
}

/// Prints the name, the endpoint and the security of each virtual machine.
pub(crate) fn list(settings: &Settings, is_json: bool) -> anyhow::Result<()> {
    let vms = settings.config.vms.iter();
    if is_json {
        let list = vms.map(|(name, vm)| {
            json!({
                "name": name,
                "endpoint": vm.endpoint,
                "identity": vm.identity,
                "plain": vm.plain,
            })
        });
        return Ok(output::json(&list.collect())?);
    }
    let rows = vms.map(|(name, vm)| {
        let security = if vm.plain { "plain" } else { "tls" };
        vec![name.clone(), vm.endpoint.clone(), security.to_owned()]
    });
    Ok(output::lines(output::table(&Vec::from_iter(rows)))?)
}

fn add<'a>(
    document: &mut DocumentMut,
    args: &AddArgs,
    identity: Option<&'a Path>,
    plain: bool,
) -> anyhow::Result<()> {
    let name = &args.name;
    if !is_name(name) {
        bail!(
            "invalid name {name:?}: only letters, digits, '-', '_' and '.', the first a letter, a digit or '_'"
        );
    }
    args.endpoint.parse::<Endpoint>()?;
    let vms = document
        .entry("vms")
        .or_insert_with(|| {
            let mut vms = Table::new();
            vms.set_implicit(true);
            Item::Table(vms)
        })
        .as_table_like_mut()
        .context("vms is not a table")?;
    // An existing entry keeps its comments. Keys that are not given are removed.
    let vm = vms
        .entry(name)
        .or_insert_with(toml_edit::table)
        .as_table_like_mut()
        .with_context(|| format!("vms.{name} is not a table"))?;
    vm.insert("endpoint", value(&args.endpoint));
    let utf8 = |path: &'a Path| {
        path.to_str()
            .context("the directory of the identity is not UTF-8")
    };
    set(vm, "identity", identity.map(utf8).transpose()?.map(value));
    set(vm, "plain", plain.then(|| value(true)));
    Ok(())
}

/// Sets or removes a key.
fn set(table: &mut dyn TableLike, key: &str, item: Option<Item>) {
    match item {
        Some(item) => drop(table.insert(key, item)),
        None => drop(table.remove(key)),
    }
}

fn remove(document: &mut DocumentMut, name: &str) -> anyhow::Result<()> {
    document
        .get_mut("vms")
        .and_then(Item::as_table_like_mut)
        .and_then(|vms| vms.remove(name))
        .with_context(|| format!("no virtual machine is named {name:?}"))?;
    Ok(())
}

/// Changes the configuration file atomically.
fn edit(
    path: &Path,
    change: impl FnOnce(&mut DocumentMut) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // Replaces the target of a symbolic link, not the link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut document: DocumentMut = read_or_empty(&path)?
        .parse()
        .with_context(|| format!("{} is not TOML", path.display()))?;
    change(&mut document)?;
    let text = document.to_string();
    // Refuses a change that makes the file unreadable.
    parse(&path, &text)?;
    write_whole(&path, text.as_bytes(), 0o644)
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(text: &str, change: impl FnOnce(&mut DocumentMut) -> anyhow::Result<()>) -> String {
        let mut document: DocumentMut = text.parse().unwrap();
        change(&mut document).unwrap();
        let text = document.to_string();
        parse(Path::new("config.toml"), &text).unwrap();
        text
    }

    fn named(name: &str, endpoint: &str) -> AddArgs {
        AddArgs {
            name: name.to_owned(),
            endpoint: endpoint.to_owned(),
        }
    }

    const OLD: &str = "\
# mine
[vms.demo] # the demo
endpoint = \"vsock:3\" # old
plain = true

[vms.other]
endpoint = \"unix:/x\"
";

    #[test]
    fn adding_a_vm_keeps_the_rest_of_the_file() {
        let text = changed(OLD, |document| {
            add(
                document,
                &named("new", "vsock:4"),
                Some(Path::new("/id")),
                false,
            )
        });
        assert!(text.starts_with(OLD), "{text}");
        assert!(text.ends_with("[vms.new]\nendpoint = \"vsock:4\"\nidentity = \"/id\"\n"));
    }

    #[test]
    fn adding_an_existing_vm_changes_it_in_its_position() {
        let text = changed(OLD, |document| {
            add(document, &named("demo", "vsock:9"), None, false)
        });
        assert!(
            text.starts_with("# mine\n[vms.demo] # the demo\nendpoint = \"vsock:9\""),
            "{text}"
        );
        assert!(!text.contains("plain"));
    }

    #[test]
    fn removing_a_vm_keeps_the_rest_of_the_file() {
        let text = changed(OLD, |document| remove(document, "demo"));
        assert_eq!(text.trim(), "[vms.other]\nendpoint = \"unix:/x\"");
        let mut document: DocumentMut = OLD.parse().unwrap();
        remove(&mut document, "unknown").unwrap_err();
    }

    #[test]
    fn a_vm_can_be_added_to_an_empty_file() {
        let text = changed("", |document| {
            add(document, &named("demo", "vsock:3"), None, true)
        });
        assert_eq!(text, "[vms.demo]\nendpoint = \"vsock:3\"\nplain = true\n");
    }

    #[test]
    fn vm_add_refuses_invalid_names_and_endpoints() {
        for (name, endpoint) in [
            ("", "vsock:3"),
            ("a/b", "vsock:3"),
            ("a:b", "vsock:3"),
            ("-a", "vsock:3"),
            ("..", "vsock:3"),
            ("a", "tcp:3"),
        ] {
            let mut document = DocumentMut::new();
            add(&mut document, &named(name, endpoint), None, false).unwrap_err();
        }
    }
}
