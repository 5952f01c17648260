//! `agent-cli vm`: the names of virtual machines, added, removed and listed.

use std::{fs, path::Path};

use anyhow::{Context, bail};
use toml_edit::{DocumentMut, Item, Table, value};
use vsock_agent_client::Endpoint;
use vsock_agent_files::write_whole;

use crate::{
    args::{AddArgs, VmCommand},
    config::{Settings, is_name, parse, read_or_empty},
};

/// Runs it.
pub(crate) fn run(settings: &Settings, command: VmCommand) -> anyhow::Result<u8> {
    match command {
        VmCommand::List { format } => settings.list(format.value()),
        VmCommand::Add(args) => {
            let plain = settings.global().plain;
            let identity = match &settings.global().identity {
                // From here on it is read from somewhere else.
                Some(directory) => Some(std::path::absolute(directory)?),
                None => None,
            };
            edit(settings.path()?, |document| {
                add(document, &args, identity.as_deref(), plain)
            })
        }
        VmCommand::Remove { name } => {
            if !settings.names().any(|known| known == name) {
                return Err(settings.unknown(&name));
            }
            edit(settings.path()?, |document| remove(document, &name))?;
            if is_name(&name) {
                settings.instances()?.remove(&name)?;
            }
            Ok(0)
        }
    }
}

fn add(
    document: &mut DocumentMut,
    args: &AddArgs,
    identity: Option<&Path>,
    plain: bool,
) -> anyhow::Result<()> {
    let name = &args.name;
    if !is_name(name) {
        bail!("{name:?} is no name: letters, digits, and '-', '_' and '.' within");
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
    // An existing machine keeps its comments. Keys that are not given are removed.
    let vm = vms
        .entry(name)
        .or_insert_with(toml_edit::table)
        .as_table_like_mut()
        .with_context(|| format!("vms.{name} is not a table"))?;
    vm.insert("endpoint", value(&args.endpoint));
    match identity {
        Some(directory) => {
            let directory = directory
                .to_str()
                .context("the directory of the identity is not UTF-8")?;
            vm.insert("identity", value(directory));
        }
        None => drop(vm.remove("identity")),
    }
    if plain {
        drop(vm.insert("plain", value(true)))
    } else {
        drop(vm.remove("plain"))
    }
    Ok(())
}

fn remove(document: &mut DocumentMut, name: &str) -> anyhow::Result<()> {
    document
        .get_mut("vms")
        .and_then(Item::as_table_like_mut)
        .and_then(|vms| vms.remove(name))
        .with_context(|| format!("no virtual machine is named {name:?}"))?;
    Ok(())
}

/// Changes the file atomically: a reader sees the old content or the new one.
fn edit(
    path: &Path,
    change: impl FnOnce(&mut DocumentMut) -> anyhow::Result<()>,
) -> anyhow::Result<u8> {
    // A link stays a link.
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let mut document: DocumentMut = read_or_empty(&path)?
        .parse()
        .with_context(|| format!("{} is not TOML", path.display()))?;
    change(&mut document)?;
    let text = document.to_string();
    // What we write, we must be able to read.
    parse(&path, &text)?;
    write_whole(&path, text.as_bytes(), 0o644)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(0)
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
    fn a_name_is_added_and_everything_else_stays() {
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
    fn a_name_that_is_there_is_changed_in_its_place() {
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
    fn a_name_is_removed_and_everything_else_stays() {
        let text = changed(OLD, |document| remove(document, "demo"));
        assert_eq!(text.trim(), "[vms.other]\nendpoint = \"unix:/x\"");
        let mut document: DocumentMut = OLD.parse().unwrap();
        remove(&mut document, "nobody").unwrap_err();
    }

    #[test]
    fn the_first_name_makes_the_file() {
        let text = changed("", |document| {
            add(document, &named("demo", "vsock:3"), None, true)
        });
        assert_eq!(text, "[vms.demo]\nendpoint = \"vsock:3\"\nplain = true\n");
    }

    #[test]
    fn what_is_no_name_or_no_endpoint_is_refused() {
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
