//! The token: 256 random bits in a file that only its owner may read.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use chandler_durable::{DurableFile, RealFs};
use rustix::fs::{Mode, OFlags};
use rustix::process::geteuid;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::HttpError;

const TOKEN_BYTES: usize = 32;

/// What the cookie is made with, so that it is not the token itself.
const COOKIE_PURPOSE: &[u8] = b"chandler dashboard cookie\0";

/// What the cookie's name is made with.
const NAME_PURPOSE: &[u8] = b"chandler dashboard cookie name\0";

/// The secret of one state directory, in hexadecimal.
#[derive(Clone)]
pub struct Token {
    text: String,
    /// Of this process: a cookie is worth nothing once the server that gave it is gone, whose port
    /// somebody else may take.
    session: [u8; TOKEN_BYTES],
}

impl std::fmt::Debug for Token {
    /// Without the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    fn parse(text: &str) -> io::Result<Option<Self>> {
        let text = text.trim();
        let fits = text.len() == 2 * TOKEN_BYTES && text.bytes().all(|b| b.is_ascii_hexdigit());
        fits.then(|| Ok(Self { text: text.to_owned(), session: random_bytes()? })).transpose()
    }

    /// A new one that stands in no file.
    pub(crate) fn random() -> io::Result<Self> {
        Ok(Self { text: hex(&random_bytes::<TOKEN_BYTES>()?), session: random_bytes()? })
    }

    /// The text, for the address that opens the page.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether this is the token; how long it takes does not tell where they differ.
    pub(super) fn is(&self, offered: &[u8]) -> bool {
        self.text.as_bytes().ct_eq(offered).into()
    }

    /// What a browser keeps in its place. Cookies of one machine are shown to all its ports, so it
    /// is derived and opens nothing but this server, for as long as that runs.
    pub(super) fn cookie(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(COOKIE_PURPOSE);
        hasher.update(self.text.as_bytes());
        hasher.update(self.session);
        hex(&hasher.finalize())
    }

    /// What the cookie is called: cookies know no ports, and two servers whose ports were brought to
    /// one machine must not take each other's places.
    pub(super) fn cookie_name(&self) -> String {
        let mut hasher = Sha256::new();
        hasher.update(NAME_PURPOSE);
        hasher.update(self.text.as_bytes());
        format!("chandler_{}", &hex(&hasher.finalize())[..16])
    }

    /// Whether this is the cookie, as [`Self::is`].
    pub(super) fn is_cookie(&self, offered: &[u8]) -> bool {
        self.cookie().as_bytes().ct_eq(offered).into()
    }
}

/// 64 random bits.
pub(super) fn random_word() -> io::Result<u64> {
    Ok(u64::from_le_bytes(random_bytes()?))
}

fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The token in `path`.
pub fn read_token(path: &Path) -> Result<Token, HttpError> {
    let read = |source| HttpError::ReadToken { path: path.to_owned(), source };
    let (text, _) = read_text(path).map_err(read)?;
    let token = Token::parse(&text).map_err(|source| HttpError::Random { source })?;
    token.ok_or_else(|| HttpError::BadToken { path: path.to_owned() })
}

fn read_text(path: &Path) -> io::Result<(String, std::fs::Metadata)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file: std::fs::File = rustix::fs::open(path, flags, Mode::empty())?.into();
    let metadata = file.metadata()?;
    let mut text = String::new();
    file.take(4096).read_to_string(&mut text)?;
    Ok((text, metadata))
}

/// Whether nobody else can read or change a file.
fn is_private(metadata: &std::fs::Metadata) -> bool {
    const OTHERS: u32 = 0o077;
    metadata.mode() & OTHERS == 0 && metadata.uid() == geteuid().as_raw()
}

/// The token in `path`, which is a state directory's own file; a new one where there is none, or where
/// others could have read it.
pub(crate) fn make_or_read(path: &Path) -> Result<Token, HttpError> {
    match read_text(path) {
        Ok((text, metadata)) => {
            match Token::parse(&text).map_err(|source| HttpError::Random { source })? {
                Some(token) if is_private(&metadata) => return Ok(token),
                Some(_) => {
                    tracing::warn!("others could read {}: it is replaced", path.display());
                }
                None => tracing::warn!("{} held no token: it is replaced", path.display()),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(HttpError::ReadToken { path: path.to_owned(), source }),
    }
    make(path)
}

/// The token in a file that somebody named; a new one where there is no such file. One that is there
/// is never written to: it may be anything.
pub(crate) fn make_or_read_named(path: &Path) -> Result<Token, HttpError> {
    let (text, metadata) = match read_text(path) {
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return make(path),
        // Text is all that a token can be.
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            return Err(HttpError::NotAToken { path: path.to_owned() });
        }
        Err(source) => return Err(HttpError::ReadToken { path: path.to_owned(), source }),
    };
    let token = Token::parse(&text).map_err(|source| HttpError::Random { source })?;
    let token = token.ok_or_else(|| HttpError::NotAToken { path: path.to_owned() })?;
    if !is_private(&metadata) {
        return Err(HttpError::OpenToken { path: path.to_owned() });
    }
    Ok(token)
}

fn make(path: &Path) -> Result<Token, HttpError> {
    let token = Token::random().map_err(|source| HttpError::Random { source })?;
    let mut file = DurableFile::create_private(&RealFs, path)?;
    writeln!(file, "{}", token.text)
        .map_err(|source| HttpError::ReadToken { path: path.to_owned(), source })?;
    file.commit()?;
    Ok(token)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_made_once_kept_private_and_replaced_when_seen() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let first = make_or_read(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(first.as_str().len(), 64);
        assert_eq!(make_or_read(&path).unwrap().as_str(), first.as_str());
        assert_eq!(read_token(&path).unwrap().as_str(), first.as_str());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let second = make_or_read(&path).unwrap();
        assert_ne!(second.as_str(), first.as_str());
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        chandler_durable::write(&path, b"short").unwrap();
        assert!(matches!(read_token(&path), Err(HttpError::BadToken { .. })));
        assert_eq!(make_or_read(&path).unwrap().as_str().len(), 64);
    }

    #[test]
    fn a_file_that_somebody_named_is_made_but_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let made = make_or_read_named(&path).unwrap();
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(make_or_read_named(&path).unwrap().as_str(), made.as_str());
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let error = make_or_read_named(&path).unwrap_err();
        assert!(matches!(error, HttpError::OpenToken { .. }), "{error}");
        assert!(error.hint().unwrap().contains("chmod 600"));
        assert_eq!(read_token(&path).unwrap().as_str(), made.as_str());
        for words in [&b"my notes"[..], b"", b"\xFF\xFE picture"] {
            chandler_durable::write(&path, words).unwrap();
            let error = make_or_read_named(&path).unwrap_err();
            assert!(matches!(error, HttpError::NotAToken { .. }), "{error}");
            assert_eq!(std::fs::read(&path).unwrap(), words);
        }
    }

    #[test]
    fn only_the_token_is_the_token() {
        let token = Token::random().unwrap();
        let text = token.as_str().to_owned();
        assert!(token.is(text.as_bytes()) && token.is_cookie(token.cookie().as_bytes()));
        for other in ["", &text[1..], &format!("{text}0"), &token.cookie()] {
            assert!(!token.is(other.as_bytes()), "{other:?}");
        }
        assert!(!token.is_cookie(text.as_bytes()));
        let after_a_restart = Token::parse(&text).unwrap().unwrap();
        assert!(after_a_restart.is(text.as_bytes()));
        assert!(!after_a_restart.is_cookie(token.cookie().as_bytes()));
        assert_eq!(after_a_restart.cookie_name(), token.cookie_name());
        assert_ne!(Token::random().unwrap().cookie_name(), token.cookie_name());
        assert_eq!(format!("{token:?}"), "Token");
    }
}
