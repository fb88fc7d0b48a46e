// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tar streams, whose headers may hold what no builder would write.

/// An entry to be written.
#[derive(Clone)]
pub struct Item {
    pub name: Vec<u8>,
    pub kind: u8,
    pub link: Vec<u8>,
    pub mode: u64,
    pub uid: u64,
    pub gid: u64,
    pub mtime: u64,
    pub device: (u64, u64),
    pub content: Vec<u8>,
    pub pax: Vec<(String, Vec<u8>)>,
}

impl Item {
    pub fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.as_ref().to_vec(),
            kind,
            link: Vec::new(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: 1_000_000,
            device: (0, 0),
            content: Vec::new(),
            pax: Vec::new(),
        }
    }

    pub fn mode(mut self, mode: u64) -> Self {
        self.mode = mode;
        self
    }

    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub fn mtime(mut self, mtime: u64) -> Self {
        self.mtime = mtime;
        self
    }

    pub fn pax(mut self, key: &str, value: impl AsRef<[u8]>) -> Self {
        self.pax.push((key.to_owned(), value.as_ref().to_vec()));
        self
    }
}

pub fn file(name: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Item {
    Item {
        content: content.as_ref().to_vec(),
        ..Item::new(b'0', name)
    }
}

pub fn dir(name: impl AsRef<[u8]>) -> Item {
    Item::new(b'5', name).mode(0o755)
}

pub fn symlink(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item {
        link: target.as_ref().to_vec(),
        ..Item::new(b'2', name).mode(0o777)
    }
}

pub fn hard(name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    Item {
        link: target.as_ref().to_vec(),
        ..Item::new(b'1', name)
    }
}

pub fn fifo(name: impl AsRef<[u8]>) -> Item {
    Item::new(b'6', name)
}

pub fn character(name: impl AsRef<[u8]>, major: u64, minor: u64) -> Item {
    Item {
        device: (major, minor),
        ..Item::new(b'3', name)
    }
}

pub fn block(name: impl AsRef<[u8]>, major: u64, minor: u64) -> Item {
    Item {
        device: (major, minor),
        ..Item::new(b'4', name)
    }
}

/// A whole stream with its end mark.
pub fn tar(items: &[Item]) -> Vec<u8> {
    let mut stream = Vec::new();
    for item in items {
        write(&mut stream, item);
    }
    stream.resize(stream.len() + 1024, 0);
    stream
}

fn write(stream: &mut Vec<u8>, item: &Item) {
    if !item.pax.is_empty() {
        let records: Vec<u8> = item
            .pax
            .iter()
            .flat_map(|(key, value)| record(key, value))
            .collect();
        write(
            stream,
            &Item {
                content: records,
                ..Item::new(b'x', "pax")
            },
        );
    }
    for (kind, name) in [(b'L', &item.name), (b'K', &item.link)] {
        if name.len() > 100 {
            write(
                stream,
                &Item {
                    content: [name.as_slice(), b"\0"].concat(),
                    ..Item::new(kind, "long")
                },
            );
        }
    }
    stream.extend_from_slice(&header(item));
    stream.extend_from_slice(&item.content);
    stream.resize(stream.len().next_multiple_of(512), 0);
}

pub fn header(item: &Item) -> [u8; 512] {
    let mut block = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &item.name[..item.name.len().min(100)]);
    put(100, format!("{:07o}", item.mode).as_bytes());
    put(108, format!("{:07o}", item.uid).as_bytes());
    put(116, format!("{:07o}", item.gid).as_bytes());
    put(124, format!("{:011o}", item.content.len()).as_bytes());
    put(136, format!("{:011o}", item.mtime).as_bytes());
    put(148, b"        ");
    put(156, &[item.kind]);
    put(157, &item.link[..item.link.len().min(100)]);
    put(257, b"ustar  \0");
    put(329, format!("{:07o}", item.device.0).as_bytes());
    put(337, format!("{:07o}", item.device.1).as_bytes());
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    // The digits of the length count too; the first length that fits itself is meant.
    let length = (rest..)
        .find(|length| length.to_string().len() + rest == *length)
        .unwrap();
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}
