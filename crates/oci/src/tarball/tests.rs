// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The reader against the `tar` crate, on streams which that writes.

use std::io::Read;

use proptest::prelude::*;

use super::{Entries, Entry, Kind, Time};

#[derive(Clone, Debug)]
struct Given {
    path: String,
    link: Option<String>,
    mode: u32,
    uid: u64,
    mtime: u64,
    content: Vec<u8>,
    xattr: Option<Vec<u8>>,
    is_posix: bool,
}

fn given() -> impl Strategy<Value = Given> {
    (
        "[a-z]{1,30}(/[a-z]{1,60}){0,6}",
        proptest::option::of("[a-z]{1,30}(/[a-z]{1,60}){0,6}"),
        0_u32..0o10000,
        0_u64..4_294_967_295,
        0_u64..(1 << 40),
        proptest::collection::vec(any::<u8>(), 0..1500),
        proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40)),
        any::<bool>(),
    )
        .prop_map(|(path, link, mode, uid, mtime, content, xattr, is_posix)| {
            let content = if link.is_some() { Vec::new() } else { content };
            Given {
                path,
                link,
                mode,
                uid,
                mtime,
                content,
                xattr,
                is_posix,
            }
        })
}

fn write(all: &[Given]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for given in all {
        if let Some(value) = &given.xattr {
            builder
                .append_pax_extensions([("SCHILY.xattr.user.x", value.as_slice())])
                .unwrap();
        }
        let mut header = if given.is_posix {
            tar::Header::new_ustar()
        } else {
            tar::Header::new_gnu()
        };
        header.set_mode(given.mode);
        header.set_uid(given.uid);
        header.set_gid(given.uid);
        header.set_mtime(given.mtime);
        header.set_size(given.content.len() as u64);
        match &given.link {
            Some(link) => {
                header.set_entry_type(tar::EntryType::Symlink);
                builder.append_link(&mut header, &given.path, link).unwrap();
            }
            None => builder
                .append_data(&mut header, &given.path, given.content.as_slice())
                .unwrap(),
        }
    }
    builder.into_inner().unwrap()
}

fn read(stream: &[u8]) -> Vec<(Entry, Vec<u8>)> {
    let mut entries = Entries::new(stream);
    let mut all = Vec::new();
    while let Some(entry) = entries.next().unwrap() {
        let mut content = Vec::new();
        let mut buffer = [0; 100];
        loop {
            match entries.read_content(&mut buffer).unwrap() {
                0 => break,
                count => content.extend_from_slice(&buffer[..count]),
            }
        }
        all.push((entry, content));
    }
    all
}

proptest! {
    #[test]
    fn what_the_tar_crate_writes_is_read(all in proptest::collection::vec(given(), 0..5)) {
        let expected: Vec<(Entry, Vec<u8>)> = all
            .iter()
            .map(|given| {
                let id = u32::try_from(given.uid).unwrap();
                let entry = Entry {
                    path: given.path.clone().into_bytes(),
                    kind: given.link.as_ref().map_or(Kind::File, |link| Kind::Symlink(link.clone().into_bytes())),
                    mode: given.mode,
                    uid: id,
                    gid: id,
                    size: given.content.len() as u64,
                    sparse: None,
                    mtime: Time { seconds: i64::try_from(given.mtime).unwrap(), nanoseconds: 0 },
                    xattrs: given.xattr.iter().map(|value| (b"user.x".to_vec(), value.clone())).collect(),
                };
                (entry, given.content.clone())
            })
            .collect();

        prop_assert_eq!(read(&write(&all)), expected);
    }

    #[test]
    fn content_that_is_not_read_is_skipped(all in proptest::collection::vec(given(), 0..5)) {
        let stream = write(&all);
        let mut entries = Entries::new(stream.as_slice());
        let mut paths = Vec::new();
        while let Some(entry) = entries.next().unwrap() {
            paths.push(entry.path);
        }

        let expected: Vec<Vec<u8>> = all.iter().map(|given| given.path.clone().into_bytes()).collect();
        prop_assert_eq!(paths, expected);
    }

    #[test]
    fn every_way_of_cutting_a_stream_ends(all in proptest::collection::vec(given(), 1..3), part in 0.0..1.0_f64) {
        let stream = write(&all);
        // A place in the stream; rounding does not matter.
        let cut = ((stream.len() as f64) * part) as usize;
        let mut entries = Entries::new(&stream[..cut]);
        let mut count = 0;
        while let Ok(Some(_)) = entries.next() {
            count += 1;
        }

        prop_assert!(count <= all.len());
    }

    #[test]
    fn noise_is_survived(noise in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let mut entries = Entries::new(noise.as_slice());
        while let Ok(Some(entry)) = entries.next() {
            prop_assert!(entry.size <= u64::MAX / 4);
        }
    }
}

#[test]
fn header_with_any_fields_is_survived() {
    // All bytes of a header, each with a right checksum: numbers of every form.
    for position in 0..512 {
        for value in [0_u8, b'0', b'7', b'8', 0x80, 0xff] {
            let mut header = tar::Header::new_ustar();
            header.set_path("name").unwrap();
            header.as_mut_bytes()[position] = value;
            header.set_cksum();
            let mut entries = Entries::new(
                std::io::Cursor::new(header.as_bytes()).chain(std::io::repeat(0).take(2048)),
            );

            let outcome = entries.next();

            assert!(outcome.is_ok() || !outcome.unwrap_err().to_string().is_empty());
        }
    }
}
