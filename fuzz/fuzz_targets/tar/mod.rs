// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tar streams, for targets that take one.

/// A record of a pax header.
pub fn record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let length = (rest..)
        .find(|length| length.to_string().len() + rest == *length)
        .unwrap_or(rest);
    [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
}

/// Appends an entry, with a byte of its header changed before the checksum is made.
pub fn block(
    stream: &mut Vec<u8>,
    kind: u8,
    name: &[u8],
    link: &[u8],
    mode: u16,
    content: &[u8],
    change: Option<(u16, u8)>,
) {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &name[..name.len().min(100)]);
    put(100, format!("{:07o}", mode & 0o7777).as_bytes());
    put(124, format!("{:011o}", content.len()).as_bytes());
    put(148, b"        ");
    put(156, &[kind]);
    put(157, &link[..link.len().min(100)]);
    put(257, b"ustar  \0");
    if let Some((at, value)) = change {
        header[usize::from(at) % 512] = value;
        header[148..156].copy_from_slice(b"        ");
    }
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    stream.extend_from_slice(&header);
    stream.extend_from_slice(content);
    stream.resize(stream.len().next_multiple_of(512), 0);
}
