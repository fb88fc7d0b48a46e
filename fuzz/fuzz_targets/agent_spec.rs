// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The agent's reading of a spec: what it takes is what it can honour, so that its later steps need not ask again.
#![no_main]

use std::path::{Component, Path};

use arbitrary::Arbitrary;
use coracle_agent::spec::mount_options::MountOptions;
use coracle_agent::spec::{NamespaceKind, Spec};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

#[derive(Arbitrary, Debug)]
enum Input<'i> {
    Changed(Vec<(Field, Content)>),
    Bytes(&'i [u8]),
}

/// Where a spec is changed.
#[derive(Arbitrary, Debug)]
enum Field {
    Root(Member),
    Process(Member),
    User(Member),
    Capabilities(Member),
    Rlimits,
    Mounts,
    Namespaces,
    Devices,
    Sysctl,
    Rules,
    Memory(Member),
    Cpu(Member),
    Pids,
    Unified,
    Linux(Member),
    Top(Member),
}

#[derive(Arbitrary, Debug)]
enum Content {
    Null,
    Boolean(bool),
    Number(i64),
    Text(Text),
    List(Vec<Content>),
    Object(Vec<(Member, Content)>),
    Named(Vec<(Text, Text)>),
    Rlimit {
        soft: u8,
        hard: u8,
    },
    Mount {
        destination: Text,
        options: Vec<Text>,
    },
    Device {
        path: Text,
        kind: Text,
        major: i64,
    },
}

/// Texts of which fields are made, so that fields meet values that fit them.
#[derive(Arbitrary, Debug)]
enum Text {
    Empty,
    Root,
    Parent,
    Path,
    Relative,
    Nul,
    Kind,
    Access,
    Resource,
    Capability,
    Parameter,
    Bind,
    ReadOnly,
    Option,
    Namespace(u8),
    Any(String),
}

/// Names of members of the objects of a spec.
#[derive(Arbitrary, Debug)]
struct Member(u8);

const NAMES: &[&str] = &[
    "path",
    "readonly",
    "terminal",
    "consoleSize",
    "args",
    "env",
    "cwd",
    "noNewPrivileges",
    "oomScoreAdj",
    "uid",
    "gid",
    "umask",
    "additionalGids",
    "username",
    "bounding",
    "effective",
    "ambient",
    "type",
    "soft",
    "hard",
    "destination",
    "source",
    "options",
    "major",
    "minor",
    "fileMode",
    "allow",
    "access",
    "limit",
    "reservation",
    "swap",
    "shares",
    "quota",
    "period",
    "cpus",
    "idle",
    "maskedPaths",
    "readonlyPaths",
    "rootfsPropagation",
    "cgroupsPath",
    "hostname",
    "domainname",
    "annotations",
    "hooks",
];

const NAMESPACES: &[&str] = &[
    "mount", "pid", "uts", "ipc", "network", "cgroup", "user", "time",
];

impl Member {
    fn name(&self) -> &'static str {
        NAMES[usize::from(self.0) % NAMES.len()]
    }
}

impl Text {
    fn text(&self) -> &str {
        match self {
            Self::Empty => "",
            Self::Root => "/",
            Self::Parent => "/..",
            Self::Path => "/a/b",
            Self::Relative => "a/b",
            Self::Nul => "/a\0b",
            Self::Kind => "c",
            Self::Access => "rw",
            Self::Resource => "RLIMIT_NOFILE",
            Self::Capability => "CAP_CHOWN",
            Self::Parameter => "net.ipv4.ip_forward",
            Self::Bind => "rbind",
            Self::ReadOnly => "rro",
            Self::Option => "size=1m",
            Self::Namespace(kind) => NAMESPACES[usize::from(*kind) % NAMESPACES.len()],
            Self::Any(text) => text,
        }
    }
}

impl Content {
    fn value(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Boolean(truth) => json!(truth),
            Self::Number(number) => json!(number),
            Self::Text(text) => json!(text.text()),
            Self::List(items) => items.iter().map(Self::value).collect(),
            Self::Object(members) => members
                .iter()
                .map(|(name, content)| (name.name().to_owned(), content.value()))
                .collect(),
            Self::Named(members) => members
                .iter()
                .map(|(name, text)| (name.text().to_owned(), json!(text.text())))
                .collect(),
            Self::Rlimit { soft, hard } => {
                json!([{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}])
            }
            Self::Mount {
                destination,
                options,
            } => {
                let options: Vec<&str> = options.iter().map(Text::text).collect();
                json!([{"destination": destination.text(), "type": "tmpfs", "options": options}])
            }
            Self::Device { path, kind, major } => {
                json!([{"path": path.text(), "type": kind.text(), "major": major}])
            }
        }
    }
}

impl Field {
    /// The object that holds it, as names from the top, and its name there.
    fn place(&self) -> (&[&str], &'static str) {
        match self {
            Self::Root(member) => (&["root"], member.name()),
            Self::Process(member) => (&["process"], member.name()),
            Self::User(member) => (&["process", "user"], member.name()),
            Self::Capabilities(member) => (&["process", "capabilities"], member.name()),
            Self::Rlimits => (&["process"], "rlimits"),
            Self::Mounts => (&[], "mounts"),
            Self::Namespaces => (&["linux"], "namespaces"),
            Self::Devices => (&["linux"], "devices"),
            Self::Sysctl => (&["linux"], "sysctl"),
            Self::Rules => (&["linux", "resources"], "devices"),
            Self::Memory(member) => (&["linux", "resources", "memory"], member.name()),
            Self::Cpu(member) => (&["linux", "resources", "cpu"], member.name()),
            Self::Pids => (&["linux", "resources", "pids"], "limit"),
            Self::Unified => (&["linux", "resources"], "unified"),
            Self::Linux(member) => (&["linux"], member.name()),
            Self::Top(member) => (&[], member.name()),
        }
    }
}

fn minimal() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"args": ["true"], "cwd": "/"},
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}]},
    })
}

fn change(spec: &mut Value, field: &Field, content: &Content) {
    let (path, name) = field.place();
    let mut object = spec;
    for step in path {
        if !object.is_object() {
            *object = Value::Object(Map::new());
        }
        object = &mut object[*step];
    }
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    object[name] = content.value();
}

impl Input<'_> {
    fn json(&self) -> Vec<u8> {
        match self {
            Self::Changed(changes) => {
                let mut spec = minimal();
                for (field, content) in changes {
                    change(&mut spec, field, content);
                }
                spec.to_string().into_bytes()
            }
            Self::Bytes(bytes) => bytes.to_vec(),
        }
    }
}

fuzz_target!(|input: Input<'_>| {
    let Ok(spec) = Spec::parse(&input.json()) else {
        return;
    };

    let process = &spec.process;
    assert!(
        process
            .args
            .first()
            .is_some_and(|command| !command.is_empty())
    );
    let texts = process.args.iter().chain(&process.env);
    assert!(texts.chain([&process.cwd]).all(|text| !text.contains('\0')));
    assert!(process.rlimits.iter().all(|limit| limit.soft <= limit.hard));
    assert!(spec.has_namespace(NamespaceKind::Mount) && spec.has_namespace(NamespaceKind::Pid));
    for mount in &spec.mounts {
        let destination = Path::new(&mount.destination);
        assert!(destination.is_absolute());
        assert!(
            destination
                .components()
                .any(|part| matches!(part, Component::Normal(_)))
        );
        assert!(MountOptions::parse(&mount.options).is_ok());
    }
    for name in spec.linux.resources.unified.keys() {
        assert_eq!(Path::new(name).components().count(), 1);
    }
    for name in spec.linux.sysctl.keys() {
        let path = name.replace('.', "/");
        assert!(!path.split('/').any(|part| matches!(part, "" | "." | "..")));
    }
});
