//! Replaces spans of a body that lies in pieces, without copying what stays.

use std::ops::Range;

use bytes::Bytes;

/// The body with each range (absolute offsets, not overlapping) replaced by its bytes; empty bytes remove it. What
/// stays is shared with `pieces`, not copied. A range beyond the end counts as far as there are bytes.
pub fn splice(pieces: &[Bytes], cuts: &[(Range<usize>, Bytes)]) -> Vec<Bytes> {
    let mut cuts: Vec<_> = cuts.iter().collect();
    cuts.sort_by_key(|(range, _)| range.start);
    let mut body = Vec::with_capacity(pieces.len() + 2 * cuts.len());
    let mut next = 0;
    for (range, instead) in cuts {
        share(pieces, next..range.start, &mut body);
        if !instead.is_empty() {
            body.push(instead.clone());
        }
        next = next.max(range.start).max(range.end);
    }
    share(pieces, next..usize::MAX, &mut body);
    body
}

/// Adds handles to that range of the pieces.
fn share(pieces: &[Bytes], range: Range<usize>, body: &mut Vec<Bytes>) {
    let mut offset = 0;
    for piece in pieces {
        let start = range.start.saturating_sub(offset).min(piece.len());
        let end = range.end.saturating_sub(offset).min(piece.len());
        if start < end {
            body.push(piece.slice(start..end));
        }
        offset += piece.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_stays_is_shared_not_copied() {
        let body = Bytes::from_static(br#"{"model":"a","x":1}"#);
        let spliced = splice(std::slice::from_ref(&body), &[(9..12, Bytes::from_static(b"\"b\""))]);
        assert_eq!(spliced.concat(), br#"{"model":"b","x":1}"#);
        assert_eq!(spliced[0].as_ptr(), body.as_ptr());
        assert_eq!(spliced[2].as_ptr(), body[12..].as_ptr());
    }

    #[test]
    fn ranges_out_of_order_or_out_of_bounds_do_no_harm() {
        let body = [Bytes::from_static(b"abc"), Bytes::new(), Bytes::from_static(b"def")];
        let new = Bytes::from_static(b"-");
        assert_eq!(splice(&body, &[(4..5, new.clone()), (1..2, Bytes::new())]).concat(), b"acd-f");
        assert_eq!(splice(&body, &[(5..99, new.clone()), (200..300, new.clone())]).concat(), b"abcde--");
        #[allow(clippy::reversed_empty_ranges, reason = "on purpose")]
        let reversed = 4..2;
        assert_eq!(splice(&body, &[(reversed, new)]).concat(), b"abcd-ef");
    }

    proptest! {
        #[test]
        fn does_to_pieces_what_a_vector_splice_does_to_the_whole(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9),
            marks in prop::collection::btree_set(0usize..80, 0..9),
            new in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5), 5),
        ) {
            let mut whole: Vec<u8> = pieces.concat();
            let pieces: Vec<Bytes> = pieces.into_iter().map(Bytes::from).collect();
            let marks: Vec<usize> = marks.into_iter().filter(|&mark| mark <= whole.len()).collect();
            let cuts: Vec<(Range<usize>, Bytes)> = marks
                .chunks_exact(2)
                .zip(new)
                .map(|(ends, new)| (ends[0]..ends[1], Bytes::from(new)))
                .collect();
            let spliced = splice(&pieces, &cuts);
            for (range, new) in cuts.into_iter().rev() {
                whole.splice(range, new);
            }
            prop_assert!(spliced.iter().all(|piece| !piece.is_empty()));
            prop_assert_eq!(spliced.concat(), whole);
        }
    }
}
