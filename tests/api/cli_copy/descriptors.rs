//! Trees with more files and more levels than a process may have files open.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{after, finish, spawn};
use crate::cli_files::{Ends, stderr, stdout};

/// More than what goes together with other files, in bytes.
const FILE_BYTES: usize = 70 * 1024;

/// Files in the top directory.
const FILES: usize = 300;

/// Makes a tree with so many directories below each other, a large file in each.
fn tree(ends: &Ends, levels: usize) -> PathBuf {
    let top = ends.mkdir("tree");
    for number in 0..FILES {
        ends.write(format!("tree/{number}"), [1; FILE_BYTES]);
    }
    let mut directory = top.clone();
    for _ in 0..levels {
        directory.push("d");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("file"), [2; FILE_BYTES]).unwrap();
    }
    top
}

/// Whether all of it is there.
fn check(copy: &Path, levels: usize) {
    for number in 0..FILES {
        assert!(fs::read(copy.join(number.to_string())).unwrap() == [1; FILE_BYTES]);
    }
    let mut directory = copy.to_owned();
    for _ in 0..levels {
        directory.push("d");
        assert!(fs::read(directory.join("file")).unwrap() == [2; FILE_BYTES]);
    }
}

/// Copies a tree by all commands that do, with so many descriptors.
async fn all(ends: &Ends, levels: usize, descriptors: usize) {
    let tree = tree(ends, levels);
    let endpoint = ends.agent.endpoint();
    let far = |path: &Path| format!("{endpoint}:{}", path.display());
    let near = |path: &Path| path.display().to_string();
    let copies = ["push", "pull", "put", "get"].map(|verb| ends.path(verb));
    let line = |verb: &str, copy: &Path| {
        let line = format!("{verb} -R {} {}", tree.display(), copy.display());
        near(&ends.write(format!("{verb}.batch"), line))
    };
    let endpoint = endpoint.to_string();
    let commands = [
        ends.cli(["push", "-r", &near(&tree), &far(&copies[0])]),
        ends.cli(["pull", "-r", &far(&tree), &near(&copies[1])]),
        ends.cli(["sftp", "-b", &line("put", &copies[2]), &endpoint]),
        ends.cli(["sftp", "-b", &line("get", &copies[3]), &endpoint]),
    ];
    for (command, copy) in commands.iter().zip(&copies) {
        let limited = after(&format!("ulimit -n {descriptors}"), command);
        let output = finish(spawn(limited)).await;
        assert_eq!(
            output.status.code(),
            Some(0),
            "{copy:?}: {}",
            stderr(&output)
        );
        check(copy, levels);
        fs::remove_dir_all(copy).unwrap();
    }
}

#[tokio::test]
async fn copy_of_a_deep_tree_needs_few_descriptors() {
    all(&Ends::start(), 100, 256).await;
}

#[tokio::test]
async fn copy_of_many_files_needs_few_descriptors() {
    all(&Ends::start(), 4, 64).await;
}

#[tokio::test]
async fn soft_descriptor_limit_is_raised() {
    let ends = Ends::start();
    let (tree, copy) = (tree(&ends, 100), ends.path("copy"));
    let words = ["push", "-r", tree.to_str().unwrap()].map(Into::into);
    let words = words.into_iter().chain([ends.place(&copy)]);
    let output = finish(spawn(after("ulimit -S -n 64", &ends.cli(words)))).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    check(&copy, 100);
}

#[tokio::test]
async fn prompt_commands_get_the_original_descriptor_limit() {
    let ends = Ends::start();
    let batch = ends.write("batch", "!ulimit -S -n\n");
    let endpoint = ends.agent.endpoint();
    let mut prompt = ends.cli(["sftp", "-b", batch.to_str().unwrap(), &endpoint]);
    prompt.env("SHELL", "/bin/sh");
    let output = finish(spawn(after("ulimit -S -n 77", &prompt))).await;
    assert!(
        stdout(&output).lines().any(|line| line == "77"),
        "{}",
        stdout(&output)
    );
}

/// Directories that have others, and files, beside the one that the deepest is in.
#[tokio::test]
async fn copy_of_many_levels_needs_few_descriptors() {
    let ends = Ends::start();
    let tree = ends.mkdir("tree");
    let mut directory = tree.clone();
    for _ in 0..300 {
        for name in ["a", "d", "z"] {
            fs::create_dir(directory.join(name)).unwrap();
            fs::write(directory.join(name).join("file"), name).unwrap();
        }
        for number in 0..3 {
            fs::write(directory.join(number.to_string()), [3; FILE_BYTES / 8]).unwrap();
        }
        directory.push("d");
    }
    let words = |verb: &str| match verb {
        "push" => [
            verb.into(),
            "-r".into(),
            tree.clone().into(),
            ends.place(ends.path(verb)),
        ],
        _ => [
            verb.into(),
            "-r".into(),
            ends.place(&tree),
            ends.path(verb).into(),
        ],
    };
    for verb in ["push", "pull"] {
        let limited = after("ulimit -n 64", &ends.cli(words(verb)));
        let output = finish(spawn(limited)).await;
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let compared = Command::new("diff")
            .arg("-r")
            .args([&tree, &ends.path(verb)])
            .output()
            .unwrap();
        assert!(compared.status.success(), "{verb}: {}", stderr(&compared));
    }
}
