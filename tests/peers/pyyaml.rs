//! What `agent-cli config` takes as YAML is what `PyYAML`, by which cloud-init reads it, can load.

use std::{
    io::Write as _,
    process::{Command, Stdio},
};

use harness::Random;
use vsock_agent_serve::instance::Instance;

/// Debian's Python, which has Debian's `PyYAML`.
const PYTHON: &str = "/usr/bin/python3";

/// Texts that are compared, beside those that are written here.
const TEXTS: usize = 8000;

/// What we refuse though `PyYAML` loads it. libyaml, which reads for us, is stricter here, or we
/// are, and nothing is lost but a spelling that nobody needs.
const STRICTER: [&str; 8] = [
    "found a tab character where an indentation space is expected",
    "found unexpected ':'",
    "did not find expected whitespace or line break",
    "did not find expected ','",
    "this is nested too deeply",
    "an alias within its own anchor",
    "a tag that cloud-init does not know, or of another type",
    "a key is a list or a mapping",
];

/// Texts that people may write.
const WRITTEN: [&str; 58] = [
    "a: 1\n\t\nb: 2\n",
    "a: 1\n \t# c\n",
    "a: 1\t# c\n",
    "a:\t1\n",
    "a: b\tc\n",
    "a: \"b\tc\"\n",
    "a: |\n  b\tc\n",
    "a: |\n  b\n\t\nc: d\n",
    "a: |\t\n  b\n",
    "a: |# c\n  b\n",
    "routes: [{to: ::/0, via: x}]\n",
    "a: [2001:db8::/32, ::1]\n",
    "a: [2001:db8::/32, '::1']\n",
    "a: [http://x/?b=c]\n",
    "a: http://x/?b=c\n",
    "a: !thing x\n",
    "a: !!python/object x\n",
    "a: &x 1\nb: &x 2\n",
    "a: &x 1\nb: *x\nc: *x\n",
    "a: 2020-13-45\n",
    "a: '2020-13-45'\n",
    "a: 2020-12-31\n",
    "a: 2001-12-14 21:59:43.10 -5\n",
    "a: 2001-12-14 25:59:43\n",
    "a: =\n",
    "a: '='\n",
    "=: a\n",
    "a: <<\n",
    "<<: a\n",
    "<<: [a]\n",
    "<<: {a: b}\n",
    "a: &x {b: c}\nd:\n  <<: *x\n",
    "a: &x [b]\nd:\n  <<: *x\n",
    "a: &x [{b: c}]\nd:\n  <<: *x\n",
    "a: &x b\n*x : c\n",
    "a: &x [b]\n*x : c\n",
    "{}\n",
    "--- {}\n",
    "a: \"two\nlines\"\n",
    "a: 'two\nlines'\n",
    "a: \"v\"# c\n",
    "\"a\"# c\n: b\n",
    "a: 0x_\n",
    "a: 0b_\n",
    "a: 0_\n",
    "a: 1__0\n",
    "a: 12:30:45\n",
    "a: !!binary aGk=\n",
    "a: !!binary aGk\n",
    "a: !!int x\n",
    "a: !!bool x\n",
    "a: !!set {b, c}\n",
    "a: !!omap [b: 1]\n",
    "a: !!omap [1]\n",
    "!!set {a, b}\n",
    "%YAML 2.0\n---\na: b\n",
    "%YAML 1.2\n---\na: b\n",
    "\u{feff}a: b\n",
];

/// Pieces from which other texts are made.
const PIECES: [&str; 56] = [
    "a",
    "b: ",
    "- ",
    "? ",
    ": ",
    "\n",
    "\n  ",
    "\n    ",
    "  ",
    "\t",
    " # c",
    "#",
    "'x'",
    "\"y\"",
    "'it''s'",
    "\"a\\n\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    "|",
    "|-\n  ",
    ">\n",
    "&a ",
    "*a ",
    "!t ",
    "!!str ",
    "!!int ",
    "<<: ",
    "::1",
    "2001:db8::/32",
    "0x1f",
    "1:30",
    "yes",
    "~",
    "=",
    "---\n",
    "...\n",
    "%",
    "@",
    "`",
    "\"two\n  lines\"",
    "\"two\nlines\"",
    "key: value\n",
    "  - x\n",
    "- y\n",
    "k:\n",
    "é",
    "\\",
    "!",
    "?",
    "2020-02-30",
    "2001-12-14t21:59:43.1-05:00",
    "\r\n",
    "null",
];

/// Texts that are changed in some places.
const BASES: [&str; 5] = [
    "a: 1\nb:\n  - c\n  - d: e\n",
    "version: 2\nethernets:\n  eth0: {dhcp4: true, addresses: [10.0.0.1/24, \"::1/64\"]}\n",
    "x: |\n  one\n  two\ny: >-\n  folded\n  text\nz: &q [1, 2]\nw: *q\n",
    "base: &b {x: y}\nlist:\n- a\n- {b: c}\n- [d, 'e', \"f\"]\nm:\n  <<: *b\n",
    "? plain key\n: v\n\"q k\": 'v'  # c\nrun: [sh, -c, 'echo \"a: b\"']\n",
];

fn text(random: &mut Random) -> String {
    if random.percent(40) {
        let length = random.below(12) + 1;
        return (0..length).map(|_| *random.pick(&PIECES)).collect();
    }
    let mut text: Vec<char> = random.pick(&BASES).chars().collect();
    for _ in 0..=random.below(3) {
        let at = random.below(text.len() + 1);
        let end = (at + random.below(4)).min(text.len());
        let piece = if random.percent(25) {
            ""
        } else {
            random.pick(&PIECES)
        };
        text.splice(at..end, piece.chars());
    }
    text.into_iter().collect()
}

/// Why each is refused by `PyYAML`; `None` for what it loads.
fn refused_by_python(texts: &[String]) -> Vec<Option<String>> {
    let mut python = Command::new(PYTHON)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/peers/load_yaml.py"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = python.stdin.take().unwrap();
    stdin
        .write_all(&serde_json::to_vec(texts).unwrap())
        .unwrap();
    drop(stdin);
    let output = python.wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "is python3-yaml there? make setup installs it"
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Why `agent-cli config set` refuses it as user-data.
fn refused_by_us(text: &str) -> Option<String> {
    let value = format!("#cloud-config\n{text}");
    let change = ("cloud-init.user-data".to_owned(), Some(value));
    let error = Instance::new("vm").unwrap().apply(&[change]).err()?;
    let causes = std::iter::successors(Some(&error as &dyn std::error::Error), |e| e.source());
    Some(causes.map(|e| e.to_string()).collect::<Vec<_>>().join(": "))
}

#[test]
fn accepted_yaml_matches_pyyaml() {
    let seed = match std::env::var("YAML_SEED").ok().as_deref() {
        None => 1,
        Some("fresh") => Random::fresh_seed(),
        Some(number) => number.parse().unwrap(),
    };
    println!("YAML_SEED={seed}");
    let mut random = Random::new(seed);
    let mut texts: Vec<String> = WRITTEN.map(str::to_owned).to_vec();
    texts.extend((0..TEXTS).map(|_| text(&mut random)));
    // Behind the mark, where a byte order mark or a directive may not be.
    texts.retain(|text| !text.starts_with(['%', '\u{feff}']));
    let marked: Vec<String> = texts
        .iter()
        .map(|text| format!("#cloud-config\n{text}"))
        .collect();
    let (mut taken, mut wrong) = (0, Vec::new());
    for (text, python) in texts.iter().zip(refused_by_python(&marked)) {
        match (refused_by_us(text), python) {
            (None, None) => taken += 1,
            (Some(_), Some(_)) => {}
            (None, Some(python)) => wrong.push(format!("{text:?} is taken: {python}")),
            (Some(us), None) if STRICTER.iter().any(|reason| us.contains(reason)) => {}
            (Some(us), None) => wrong.push(format!("{text:?} is refused: {us}")),
        }
    }
    wrong.sort_by_key(String::len);
    wrong.truncate(20);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(
        taken > TEXTS / 8,
        "only {taken} were taken: the generator is of no use"
    );
}

/// The cases that were seen to lose a guest its data, by themselves.
#[test]
fn ambiguous_yaml_scalars_match_pyyaml() {
    for text in [
        "a: \"two\nlines\"\n",
        "a: \"v\"# c\n",
        "{}\n",
        "a: [2001:db8::/32, '::1']\n",
    ] {
        assert_eq!(refused_by_us(text), None, "{text:?}");
    }
    for text in [
        "a: 1\n\t\nb: 2\n",
        "routes: [{to: ::/0, via: x}]\n",
        "a: !thing x\n",
        "a: &x 1\nb: &x 2\n",
        "a: 2020-13-45\n",
        "a: =\n",
        "<<: a\n",
    ] {
        let error = refused_by_us(text).unwrap_or_else(|| panic!("{text:?} is taken"));
        assert!(error.contains("line "), "{error}");
    }
}
