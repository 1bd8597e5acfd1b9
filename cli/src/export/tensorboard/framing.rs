//! TFRecord, the framing of event files: length, its checksum, the record, its checksum.
//!
//! After TensorFlow's `core/lib/io/record_writer.h`: numbers are little-endian, a checksum is
//! CRC-32C (Castagnoli), rotated and shifted so that a checksum of checksums stays one.

/// Bytes around a record.
const HEAD_BYTES: usize = 12;
const TAIL_BYTES: usize = 4;

/// A record as it stands in the file.
pub(super) fn framed(record: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_BYTES + record.len() + TAIL_BYTES);
    let length = (record.len() as u64).to_le_bytes();
    bytes.extend(length);
    bytes.extend(masked_crc32c(&length).to_le_bytes());
    bytes.extend(record);
    bytes.extend(masked_crc32c(record).to_le_bytes());
    bytes
}

fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// The records of a file up to its end, or to where it was torn or damaged.
#[cfg(test)]
pub(super) fn records(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = vec![];
    while let Some((head, rest)) = bytes.split_at_checked(HEAD_BYTES) {
        let (length, checksum) = head.split_at(8);
        let number = u64::from_le_bytes(length.try_into().unwrap()) as usize;
        let Some((record, rest)) = rest.split_at_checked(number) else { break };
        let Some((tail, rest)) = rest.split_at_checked(TAIL_BYTES) else { break };
        if masked_crc32c(length).to_le_bytes() != checksum
            || masked_crc32c(record).to_le_bytes() != tail
        {
            break;
        }
        found.push(record);
        bytes = rest;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The check value of CRC-32C, from RFC 3720 (B.4) and the catalogue of parametrised CRCs.
    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c::crc32c(&[0; 32]), 0x8a91_36aa);
    }

    #[test]
    fn records_come_back_up_to_where_the_file_was_torn() {
        let file = [framed(b"one"), framed(b""), framed(b"three")].concat();
        let all: [&[u8]; 3] = [b"one", b"", b"three"];
        assert_eq!(records(&file), all);
        for cut in 0..file.len() {
            let whole = records(&file[..cut]);
            assert_eq!(whole, all[..whole.len()], "cut at {cut}");
            assert!(whole.len() < 3);
        }
        let mut damaged = file.clone();
        damaged[14] ^= 1;
        assert!(records(&damaged).is_empty());
    }
}
