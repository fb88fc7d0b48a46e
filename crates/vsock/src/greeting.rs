// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The two lines that begin a connection made by the host: `CONNECT <port>` and `OK <port>`.

/// Bytes in which the host's line must end. The longest sensible one has 20.
pub const MAX_LINE: usize = 32;

/// A whole request line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connect {
    /// The guest's port.
    pub port: u32,
    /// Bytes of the line, with its end. What follows is data for the guest.
    pub len: usize,
}

/// What the host wrote is not a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the host's first line is not CONNECT and a port of the guest")]
pub struct NotARequest;

/// Looks for a request line at the beginning of `bytes`: `None` if its end has not come yet.
///
/// # Errors
///
/// [`NotARequest`] if it is something else, or has no end within [`MAX_LINE`] bytes.
pub fn parse(bytes: &[u8]) -> Result<Option<Connect>, NotARequest> {
    let bytes = &bytes[..bytes.len().min(MAX_LINE)];
    let Some(end) = bytes.iter().position(|&byte| byte == b'\n') else {
        return if bytes.len() < MAX_LINE {
            Ok(None)
        } else {
            Err(NotARequest)
        };
    };
    let line = str::from_utf8(&bytes[..end]).map_err(|_| NotARequest)?;
    let mut words = line.split_ascii_whitespace();
    match (words.next(), words.next(), words.next()) {
        (Some(verb), Some(port), None) if verb.eq_ignore_ascii_case("connect") => {
            Ok(Some(Connect {
                port: port.parse().map_err(|_| NotARequest)?,
                len: end + 1,
            }))
        }
        _ => Err(NotARequest),
    }
}

/// The line that tells the host that the guest accepted, and which port stands for the host.
pub fn accepted(host_port: u32) -> String {
    format!("OK {host_port}\n")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain(b"CONNECT 52\n", 52, 11)]
    #[case::data_follows(b"CONNECT 52\nhello", 52, 11)]
    #[case::lower_case(b"connect 1024\n", 1024, 13)]
    #[case::carriage_return(b"CONNECT 7\r\n", 7, 11)]
    #[case::highest_port(b"CONNECT 4294967295\n", u32::MAX, 19)]
    fn request_is_understood(#[case] bytes: &[u8], #[case] port: u32, #[case] len: usize) {
        assert_eq!(parse(bytes), Ok(Some(Connect { port, len })));
    }

    #[rstest]
    #[case::nothing(b"")]
    #[case::begun(b"CONN")]
    #[case::without_its_end(b"CONNECT 52")]
    fn unfinished_request_waits_for_more(#[case] bytes: &[u8]) {
        assert_eq!(parse(bytes), Ok(None));
    }

    #[rstest]
    #[case::empty_line(b"\n")]
    #[case::no_port(b"CONNECT\n")]
    #[case::port_beyond_32_bits(b"CONNECT 4294967296\n")]
    #[case::negative_port(b"CONNECT -1\n")]
    #[case::no_number(b"CONNECT ssh\n")]
    #[case::one_word_more(b"CONNECT 52 53\n")]
    #[case::other_verb(b"GET / HTTP/1.1\r\n")]
    #[case::not_text(b"\xff\xfe 52\n")]
    #[case::no_end(b"CONNECT 52                      ")]
    #[case::end_too_late(b"CONNECT 52                      \n")]
    fn other_lines_are_refused(#[case] bytes: &[u8]) {
        assert_eq!(parse(bytes), Err(NotARequest));
    }

    proptest! {
        #[test]
        fn any_port_is_understood(port: u32) {
            let line = format!("CONNECT {port}\n");

            prop_assert_eq!(parse(line.as_bytes()), Ok(Some(Connect { port, len: line.len() })));
        }

        #[test]
        fn no_bytes_confuse_the_parser(bytes: Vec<u8>) {
            let connect = parse(&bytes).unwrap_or_default();

            let ends_in = connect.map(|connect| bytes[connect.len - 1]);
            prop_assert!(ends_in.is_none_or(|byte| byte == b'\n'));
        }
    }
}
