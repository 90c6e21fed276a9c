//! Hides passwords in this process's own command line, which every user of the machine can read.
//!
//! The kernel shows what stands in memory between `arg_start` and `arg_end` of `proc_pid_stat(5)`, and a process may write
//! there. Until we do, the password was visible for the first milliseconds; that is why the manual prefers a file.

use std::{
    fs::{File, OpenOptions, read_to_string},
    io,
    os::unix::fs::FileExt as _,
};

/// Overwrites the password of every `scheme://user:password@` in the arguments.
///
/// # Errors
/// When the kernel does not let us; the arguments are then unchanged.
pub(crate) fn hide_passwords() -> io::Result<()> {
    let (start, end) = bounds(&read_to_string("/proc/self/stat")?)
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
    let length = usize::try_from(end.saturating_sub(start)).map_err(io::Error::other)?;
    let mut shown = vec![0; length];
    let memory: File = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/proc/self/mem")?;
    memory.read_exact_at(&mut shown, start)?;
    for argument in shown.split_mut(|byte| *byte == 0) {
        mask(argument);
    }
    memory.write_all_at(&shown, start)
}

/// `arg_start` and `arg_end`: fields 48 and 49, counted behind the command's name, which may contain anything.
fn bounds(stat: &str) -> Option<(u64, u64)> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(48 - 3);
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Replaces the password in a URL, keeping its length.
fn mask(argument: &mut [u8]) {
    let find = |bytes: &[u8], wanted: &[u8]| {
        bytes
            .windows(wanted.len())
            .position(|window| window == wanted)
    };
    let Some(scheme) = find(argument, b"://") else {
        return;
    };
    let Some(rest) = argument.get_mut(scheme + 3..) else {
        return;
    };
    let authority = rest
        .iter()
        .position(|byte| b"/?#".contains(byte))
        .unwrap_or(rest.len());
    let Some(authority) = rest.get_mut(..authority) else {
        return;
    };
    let Some(at) = authority.iter().rposition(|byte| *byte == b'@') else {
        return;
    };
    if let Some(user_info) = authority.get_mut(..at)
        && let Some(colon) = user_info.iter().position(|byte| *byte == b':')
    {
        for byte in user_info.iter_mut().skip(colon + 1) {
            *byte = b'*';
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        mask(&mut bytes);
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn only_the_password_is_masked() {
        assert_eq!(
            masked("socks5://me:s3cret@host:1080"),
            "socks5://me:******@host:1080"
        );
        assert_eq!(
            masked("--via=http://me:a@b@host/"),
            "--via=http://me:***@host/"
        );
        for plain in [
            "socks5://host:1080",
            "socks5://me@host",
            "a:b@c",
            "http://h/x:y@z",
            "",
        ] {
            assert_eq!(masked(plain), plain);
        }
    }

    #[test]
    fn the_bounds_are_those_of_the_arguments() {
        let (start, end) = bounds(&read_to_string("/proc/self/stat").unwrap()).unwrap();
        let mut bytes = vec![0; usize::try_from(end - start).unwrap()];
        File::open("/proc/self/mem")
            .unwrap()
            .read_exact_at(&mut bytes, start)
            .unwrap();
        assert_eq!(bytes, std::fs::read("/proc/self/cmdline").unwrap());
    }
}
