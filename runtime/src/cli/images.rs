// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The words of images.

use std::str::FromStr;

use clap::{Args, ValueEnum};
use coracle_oci::image::{Name, NameError, PathReference};
use coracle_registry::credentials::Secret;

/// When `coracle run` pulls its image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Pull {
    /// If the store has none of that name
    #[default]
    Missing,
    /// Each time: what the name stands for may have changed
    Always,
    /// Not at all
    Never,
}

/// Whom a registry is to take us for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    pub user: String,
    /// Asked for if it is left out.
    pub password: Option<Secret>,
}

impl FromStr for Login {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (user, password) = match text.split_once(':') {
            Some((user, password)) => (user, Some(password.into())),
            None => (text, None),
        };
        if user.is_empty() {
            return Err("there is no user before the colon".to_owned());
        }
        Ok(Self {
            user: user.to_owned(),
            password,
        })
    }
}

/// Get an image from a registry into the store, and unpack it.
///
/// Of an image for several platforms only the one for linux/amd64 is pulled, and of its variants the one that asks least
/// of a processor. Layers may be uncompressed, or compressed with gzip or zstd. How large an image may be is set in the
/// configuration, by image.limit and image.entries.
///
/// Registries are shown the credentials that `docker login`, `podman login` or `skopeo login` of this user have left,
/// unless others are given; a password among the words of a command is seen by all users of the host. A registry's own
/// authority is put into /etc/docker/certs.d/HOST:PORT/ca.crt.
#[derive(Debug, Args)]
pub struct PullArguments {
    /// Whom the registry is to take us for; a password that is left out is asked for on the terminal
    #[arg(short = 'u', long, value_name = "USER[:PASSWORD]")]
    pub creds: Option<Login>,
    /// Read the password from standard input
    #[arg(long, requires = "creds")]
    pub password_stdin: bool,
    /// Speak HTTP without encryption to this registry: whoever is on the way reads and changes what is sent
    #[arg(long)]
    pub insecure: bool,
    /// The image: [REGISTRY/]REPOSITORY[:TAG][@DIGEST]
    #[arg(value_name = "NAME", value_parser = pulled_name)]
    pub name: Name,
}

/// List the images in the store.
#[derive(Debug, Args)]
pub struct ImagesArguments {
    /// Print names alone
    #[arg(short, long)]
    pub quiet: bool,
    /// Print what is known as JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
}

/// Remove images from the store.
///
/// An image goes with its last name, and what no other image needs of it is removed from the disk.
#[derive(Debug, Args)]
pub struct RmiArguments {
    /// Remove those, too, that containers were made from which have ended
    #[arg(short, long)]
    pub force: bool,
    /// The images, by their names
    #[arg(required = true, value_name = "NAME")]
    pub names: Vec<String>,
}

/// Put an image of an archive or a directory into the store.
///
/// What `docker save`, `podman save` and `skopeo copy` write is taken: archives of docker, and OCI image layouts. Of an
/// image for several platforms only the one for linux/amd64 is taken.
#[derive(Debug, Args)]
pub struct LoadArguments {
    /// The archive or directory, with `:TAG` if one of several images is meant
    #[arg(value_name = "FILE|DIR[:TAG]", value_parser = path_reference)]
    pub from: PathReference,
    /// What to call the image [default: as it is called there]
    pub name: Option<Name>,
}

fn pulled_name(text: &str) -> Result<Name, String> {
    text.parse()
        .map_err(|error: NameError| match text.starts_with(['/', '.']) {
            true => {
                "it is a path; coracle load puts an image that is there into the store".to_owned()
            }
            false => error.to_string(),
        })
}

fn path_reference(text: &str) -> Result<PathReference, String> {
    PathReference::parse(text).map_err(|error| error.to_string())
}

/// Give an image another name.
#[derive(Debug, Args)]
pub struct TagArguments {
    /// The image, by its name
    pub name: Name,
    /// Its further name, which is taken from the image that had it
    pub other: Name,
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::user("user", "user", None)]
    #[case::both("user:word", "user", Some("word"))]
    #[case::colon_in_the_password("user:a:b", "user", Some("a:b"))]
    #[case::empty_password("user:", "user", Some(""))]
    fn login_is_read(#[case] text: &str, #[case] user: &str, #[case] password: Option<&str>) {
        let login: Login = text.parse().unwrap();

        assert_eq!(login.user, user);
        assert_eq!(login.password, password.map(Secret::from));
    }

    #[rstest]
    #[case::beside_us("./busybox")]
    #[case::anywhere("/images/busybox.tar")]
    fn path_is_not_pulled_but_loaded(#[case] path: &str) {
        assert!(pulled_name(path).unwrap_err().contains("coracle load"));
        assert!(pulled_name("busybox").is_ok());
    }

    #[rstest]
    #[case::empty("")]
    #[case::no_user(":word")]
    fn login_of_nobody_is_refused(#[case] text: &str) {
        assert!(text.parse::<Login>().is_err());
    }
}
