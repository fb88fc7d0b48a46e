// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a registry serves for an image's name: an index or a manifest (image-spec, image-index and manifest).

use coracle_oci::image::{Index, Manifest};
use serde::Deserialize;
use serde::de::IgnoredAny;
use thiserror::Error;

use crate::show::quoted;

/// Media type of an OCI index.
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of docker's list of manifests.
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Media type of an OCI manifest.
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of docker's manifest, version 2, schema 2.
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What is read here, as a registry is asked for it.
pub(crate) const ACCEPTED: [&str; 4] = [OCI_INDEX, DOCKER_INDEX, OCI_MANIFEST, DOCKER_MANIFEST];

/// Start of the media types of docker's manifests of schema 1.
const SCHEMA_1: &str = "application/vnd.docker.distribution.manifest.v1+";
/// Media types of an image's config; other manifests are for other things than containers.
const CONFIGS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];
/// Starts of the media types of layers.
const LAYERS: [&str; 2] = [
    "application/vnd.oci.image.layer.",
    "application/vnd.docker.image.rootfs.",
];

/// An index or a manifest.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// A list of images.
    Index(Index),
    /// The blobs of one image.
    Manifest(Manifest),
}

/// A document that is neither an index nor a manifest of an image.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum DocumentError {
    /// No JSON, or not as the specification has it.
    #[error("it is not an index or manifest: {0}")]
    Json(String),
    /// The oldest format.
    #[error(
        "it is a docker manifest of schema 1, which is obsolete and not supported; push the image again with a newer tool"
    )]
    SchemaOne,
    /// Of another kind.
    #[error("it has the media type {0}, which is neither an index nor a manifest")]
    MediaType(String),
    /// It says to be one thing, and is announced as another.
    #[error("it is announced as {announced} but says that it is {own}")]
    Ambiguous {
        /// By the registry, or by the index it is in.
        announced: String,
        /// By itself.
        own: String,
    },
    /// Neither or both.
    #[error(
        "it has no media type, and its content does not tell whether it is an index or a manifest"
    )]
    Shape,
    /// A manifest of something else.
    #[error("it is not a container image: its {what} has the media type {found}")]
    NotAnImage {
        /// Config or layer.
        what: &'static str,
        /// Its media type.
        found: String,
    },
    /// One blob with two sizes.
    #[error("it says two different sizes of blob {0}")]
    Sizes(String),
    /// More layers than any image has.
    #[error("it has {found} layers; at most {limit} are supported")]
    Layers {
        /// Layers found.
        found: usize,
        /// Layers allowed.
        limit: usize,
    },
}

/// What tells the kinds of documents apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    schema_version: Option<u64>,
    media_type: Option<String>,
    manifests: Option<IgnoredAny>,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
}

impl Document {
    /// Reads a document that was announced, by a header or an index, as `announced`; gives its media type as well.
    ///
    /// # Errors
    ///
    /// Where it is neither an index nor a manifest, or is announced as what it says it is not: two readers could then
    /// see two different images.
    pub fn parse(
        announced: Option<&str>,
        json: &[u8],
    ) -> Result<(Self, &'static str), DocumentError> {
        // Parameters (`; charset=utf-8`) and case do not matter.
        let announced = announced
            .and_then(|text| text.split(';').next())
            .map(|text| text.trim().to_ascii_lowercase());
        let announced = announced.as_deref().filter(|text| !is_generic(text));
        if announced.is_some_and(|text| text.starts_with(SCHEMA_1)) {
            return Err(DocumentError::SchemaOne);
        }
        let head: Head = match serde_json::from_slice(json) {
            Ok(head) => head,
            Err(error) => {
                // A page of HTML is better named than parsed.
                return Err(match announced {
                    Some(text) if known(text).is_none() => DocumentError::MediaType(quoted(text)),
                    _ => not_a_document(&error),
                });
            }
        };
        let own = head.media_type.as_deref();
        if head.schema_version == Some(1) || own.is_some_and(|text| text.starts_with(SCHEMA_1)) {
            return Err(DocumentError::SchemaOne);
        }
        let media_type = match (announced, own) {
            (Some(announced), Some(own)) if announced != own => {
                return Err(DocumentError::Ambiguous {
                    announced: quoted(announced),
                    own: quoted(own),
                });
            }
            (Some(text), _) | (None, Some(text)) => {
                known(text).ok_or_else(|| DocumentError::MediaType(quoted(text)))?
            }
            (None, None) => head.by_shape()?,
        };
        let document = match media_type {
            OCI_INDEX | DOCKER_INDEX => {
                Self::Index(Index::from_json(json).map_err(|error| not_a_document(&error))?)
            }
            _ => Self::Manifest(Manifest::from_json(json).map_err(|error| not_a_document(&error))?),
        };
        Ok((document, media_type))
    }
}

impl Head {
    fn by_shape(&self) -> Result<&'static str, DocumentError> {
        match (&self.manifests, &self.config, &self.layers) {
            (Some(_), None, None) => Ok(OCI_INDEX),
            (None, Some(_), Some(_)) => Ok(OCI_MANIFEST),
            _ => Err(DocumentError::Shape),
        }
    }
}

/// Checks that a manifest is one of an image.
///
/// # Errors
///
/// Where it is not.
pub(crate) fn require_image(manifest: &Manifest) -> Result<(), DocumentError> {
    let config = manifest.config.media_type.as_str();
    if CONFIGS.contains(&config) {
        return Ok(());
    }
    Err(DocumentError::NotAnImage {
        what: "config",
        found: quoted(config),
    })
}

/// Checks that all that an image holds are layers, up to `limit`.
///
/// # Errors
///
/// Where there is something else, or more.
pub(crate) fn require_layers(manifest: &Manifest, limit: usize) -> Result<(), DocumentError> {
    if manifest.layers.len() > limit {
        return Err(DocumentError::Layers {
            found: manifest.layers.len(),
            limit,
        });
    }
    let is_layer = |media_type: &str| LAYERS.iter().any(|start| media_type.starts_with(start));
    let other = manifest
        .layers
        .iter()
        .find(|layer| !is_layer(&layer.media_type));
    match other {
        Some(layer) => Err(DocumentError::NotAnImage {
            what: "layer",
            found: quoted(&layer.media_type),
        }),
        None => Ok(()),
    }
}

/// Whether a media type says nothing about the document.
fn is_generic(media_type: &str) -> bool {
    matches!(
        media_type,
        "" | "application/json" | "application/octet-stream" | "text/plain" | "binary/octet-stream"
    )
}

fn known(media_type: &str) -> Option<&'static str> {
    ACCEPTED.into_iter().find(|known| *known == media_type)
}

fn not_a_document(error: &serde_json::Error) -> DocumentError {
    DocumentError::Json(crate::show::shown(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(media_type: &str, config_type: &str, layer_type: &str) -> String {
        format!(
            r#"{{"schemaVersion": 2, {media_type}
                "config": {{"mediaType": "{config_type}", "digest": "{DIGEST}", "size": 0}},
                "layers": [{{"mediaType": "{layer_type}", "digest": "{DIGEST}", "size": 0}}]}}"#
        )
    }

    fn media_type_of(announced: Option<&str>, json: &str) -> Result<&'static str, DocumentError> {
        Document::parse(announced, json.as_bytes()).map(|(_, media_type)| media_type)
    }

    #[rstest]
    #[case::announced(Some(DOCKER_MANIFEST), "", DOCKER_MANIFEST)]
    #[case::with_parameter(
        Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
        "",
        OCI_MANIFEST
    )]
    #[case::own(
        None,
        r#""mediaType": "application/vnd.docker.distribution.manifest.v2+json","#,
        DOCKER_MANIFEST
    )]
    #[case::generic_and_own(
        Some("application/json"),
        r#""mediaType": "application/vnd.docker.distribution.manifest.v2+json","#,
        DOCKER_MANIFEST
    )]
    #[case::neither(Some("text/plain"), "", OCI_MANIFEST)]
    fn manifest_is_told_by_type_or_shape(
        #[case] announced: Option<&str>,
        #[case] own: &str,
        #[case] expected: &str,
    ) {
        assert_eq!(
            media_type_of(announced, &manifest(own, "", "")),
            Ok(expected)
        );
    }

    #[rstest]
    #[case::announced(Some(DOCKER_INDEX), DOCKER_INDEX)]
    #[case::by_shape(None, OCI_INDEX)]
    fn index_is_told_by_type_or_shape(#[case] announced: Option<&str>, #[case] expected: &str) {
        let json = r#"{"schemaVersion": 2, "manifests": []}"#;

        assert_eq!(media_type_of(announced, json), Ok(expected));
    }

    #[rstest]
    #[case::schema_1_by_header(
        Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
        "{}",
        "schema 1"
    )]
    #[case::schema_1_by_content(None, r#"{"schemaVersion": 1, "fsLayers": []}"#, "schema 1")]
    #[case::html(Some("text/html"), "<html>", "media type `text/html`")]
    #[case::json_of_another_kind(
        Some("application/vnd.other+json"),
        "{}",
        "media type `application/vnd.other+json`"
    )]
    #[case::announced_as_another(
        Some(OCI_INDEX),
        r#"{"mediaType": "application/vnd.oci.image.manifest.v1+json"}"#,
        "is announced as"
    )]
    #[case::both_shapes(
        None,
        r#"{"manifests": [], "layers": [], "config": {}}"#,
        "does not tell"
    )]
    #[case::neither_shape(None, "{}", "does not tell")]
    #[case::index_with_layers(
        Some(OCI_INDEX),
        r#"{"manifests": [], "layers": []}"#,
        "an index has no layers"
    )]
    #[case::digest_of_unknown_algorithm(
        Some(OCI_INDEX),
        r#"{"manifests": [{"digest": "md5:00", "size": 1}]}"#,
        "`md5:00`"
    )]
    #[case::negative_size(Some(OCI_INDEX), r#"{"manifests": [{"digest": "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "size": -1}]}"#, "invalid value")]
    #[case::cut(Some(OCI_INDEX), r#"{"manifests": ["#, "EOF")]
    #[case::empty(None, "", "EOF")]
    #[case::control_characters(Some("a\u{1b}[31m"), "", "`a\\u{1b}[31m`")]
    fn other_documents_are_refused(
        #[case] announced: Option<&str>,
        #[case] json: &str,
        #[case] message: &str,
    ) {
        let error = media_type_of(announced, json).unwrap_err().to_string();

        assert!(error.contains(message), "{error}");
    }

    #[rstest]
    #[case::oci(CONFIGS[0], "application/vnd.oci.image.layer.v1.tar+zstd")]
    #[case::docker(CONFIGS[1], "application/vnd.docker.image.rootfs.diff.tar.gzip")]
    fn manifest_of_an_image_is_taken(#[case] config: &str, #[case] layer: &str) {
        let manifest = Manifest::from_json(manifest("", config, layer).as_bytes()).unwrap();

        assert_eq!(require_image(&manifest), Ok(()));
        assert_eq!(require_layers(&manifest, 1), Ok(()));
    }

    #[rstest]
    #[case::chart(
        "application/vnd.cncf.helm.config.v1+json",
        "",
        1,
        "its config has the media type `application/vnd.cncf.helm.config.v1+json`"
    )]
    #[case::other_layer(CONFIGS[0], "application/wasm", 1, "its layer has the media type `application/wasm`")]
    #[case::too_many_layers(CONFIGS[0], "", 0, "it has 1 layers; at most 0")]
    fn manifest_of_anything_else_is_refused(
        #[case] config: &str,
        #[case] layer: &str,
        #[case] limit: usize,
        #[case] message: &str,
    ) {
        let manifest = Manifest::from_json(manifest("", config, layer).as_bytes()).unwrap();

        let error = require_image(&manifest)
            .and_then(|()| require_layers(&manifest, limit))
            .unwrap_err()
            .to_string();

        assert!(error.contains(message), "{error}");
    }
}
