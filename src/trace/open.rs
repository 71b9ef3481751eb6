// SPDX-License-Identifier: GPL-2.0-only
//! Opens a log: plain, or compressed with gzip, xz or zstd. What it is says its beginning, not its name.

use std::io::{self, BufRead, BufReader, Read};

/// Opens `bytes`, a whole file. What is wrong inside an archive shows when reading comes to it. Of a gzip or xz file that is
/// cut off all is read that is there; of one whose bytes are wrong, up to a block before them is lost, as no decoder hands
/// it out; of a zstd file so much as its window holds, which may be all.
pub fn open(bytes: &[u8]) -> Box<dyn BufRead + '_> {
    if bytes.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0]) {
        Box::new(BufReader::new(liblzma::bufread::XzDecoder::new_multi_decoder(bytes)))
    } else if bytes.starts_with(&[0x1f, 0x8b]) {
        Box::new(BufReader::new(flate2::bufread::MultiGzDecoder::new(bytes)))
    } else if bytes.starts_with(&ZSTD) {
        Box::new(BufReader::new(Zstd { left: Some(bytes), frame: None }))
    } else {
        Box::new(bytes)
    }
}

/// The name of how `bytes` are compressed.
pub fn compression(bytes: &[u8]) -> &'static str {
    match bytes {
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => "xz",
        [0x1f, 0x8b, ..] => "gzip",
        b if b.starts_with(&ZSTD) => "zstd",
        _ => "none",
    }
}

const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Frame after frame: the decoder itself ends with the first.
struct Zstd<'a> {
    left: Option<&'a [u8]>,
    frame: Option<Box<ruzstd::decoding::StreamingDecoder<&'a [u8], ruzstd::decoding::FrameDecoder>>>,
}

impl Read for Zstd<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            if let Some(mut f) = self.frame.take() {
                let n = f.read(out)?;
                if n > 0 || out.is_empty() {
                    self.frame = Some(f);
                    return Ok(n);
                }
                self.left = Some(f.into_inner());
            }
            match self.left.take() {
                Some(rest) if !rest.is_empty() => {
                    let f = ruzstd::decoding::StreamingDecoder::new(rest).map_err(io::Error::other)?;
                    self.frame = Some(Box::new(f));
                }
                _ => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const TEXT: &str = "1 brk(NULL) = 0x1000\n2 exit(0) = ?\n";

    fn xz(text: &str) -> Vec<u8> {
        let mut e = liblzma::write::XzEncoder::new(Vec::new(), 6);
        e.write_all(text.as_bytes()).unwrap();
        e.finish().unwrap()
    }

    fn gz(text: &str) -> Vec<u8> {
        let mut e = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        e.write_all(text.as_bytes()).unwrap();
        e.finish().unwrap()
    }

    fn zst(text: &str) -> Vec<u8> {
        ruzstd::encoding::compress_to_vec(text.as_bytes(), ruzstd::encoding::CompressionLevel::Fastest)
    }

    fn read(bytes: &[u8]) -> io::Result<String> {
        let mut s = String::new();
        open(bytes).read_to_string(&mut s).map(|_| s)
    }

    #[test]
    fn every_compression_one_frame_or_two() {
        type Form = (fn(&str) -> Vec<u8>, &'static str);
        let forms: [Form; 4] = [(|t| t.as_bytes().to_vec(), "none"), (gz, "gzip"), (xz, "xz"), (zst, "zstd")];
        for (f, name) in forms {
            let once = f(TEXT);
            assert_eq!(compression(&once), name);
            assert_eq!(read(&once).unwrap(), TEXT, "{name}");
            let twice = [once.clone(), once].concat();
            assert_eq!(read(&twice).unwrap(), TEXT.repeat(2), "{name}");
        }
    }

    #[test]
    fn a_truncated_archive_is_an_error_and_its_beginning_still_read() {
        let long: String = (0..20_000).map(|i| format!("{i} brk({:#x}) = 0\n", i * 7919 % 65_536)).collect();
        for f in [gz, xz, zst] {
            let whole = f(&long);
            let cut = &whole[..whole.len() / 2];
            let name = compression(cut);
            let mut got = Vec::new();
            assert!(open(cut).read_to_end(&mut got).is_err(), "{name}: no error");
            assert!(long.as_bytes().starts_with(&got), "{name}: what came out is wrong");
            let most = if name == "zstd" { 0 } else { long.len() / 4 };
            assert!(got.len() >= most, "{name}: only {} bytes of {} came out", got.len(), long.len());
        }
    }
}
