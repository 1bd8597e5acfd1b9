//! Porter's stemmer (Porter 1980), with the changes that NLTK makes to it and `rouge-score` takes
//! over. Words are ASCII in lower case.

/// Whose stems the rules get wrong.
const IRREGULAR: [(&str, &str); 16] = [
    ("sky", "sky"),
    ("skies", "sky"),
    ("dying", "die"),
    ("lying", "lie"),
    ("tying", "tie"),
    ("news", "news"),
    ("innings", "inning"),
    ("inning", "inning"),
    ("outings", "outing"),
    ("outing", "outing"),
    ("cannings", "canning"),
    ("canning", "canning"),
    ("howe", "howe"),
    ("proceed", "proceed"),
    ("exceed", "exceed"),
    ("succeed", "succeed"),
];

/// Suffixes and what becomes of them; the first that fits decides.
type Rules<'a> = &'a [(&'a str, &'a str)];

const STEP_2: Rules = &[
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
];

const STEP_3: Rules = &[
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
];

const STEP_4: [&str; 19] = [
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou",
    "ism", "ate", "iti", "ous", "ive", "ize",
];

/// The stem of a word.
pub(super) fn stem(word: &str) -> String {
    if let Some((_, stem)) = IRREGULAR.iter().find(|(irregular, _)| *irregular == word) {
        return (*stem).to_owned();
    }
    if word.len() <= 2 {
        return word.to_owned();
    }
    let mut word = word.to_owned();
    plural(&mut word);
    past(&mut word);
    y_to_i(&mut word);
    step_2(&mut word);
    replace_suffix(&mut word, STEP_3, 0);
    step_4(&mut word);
    final_e(&mut word);
    double_l(&mut word);
    word
}

/// Step 1a.
fn plural(word: &mut String) {
    if word.ends_with("ies") && word.len() == 4 {
        word.pop();
    } else if word.ends_with("sses") || word.ends_with("ies") {
        word.truncate(word.len() - 2);
    } else if word.ends_with('s') && !word.ends_with("ss") {
        word.pop();
    }
}

/// Step 1b.
fn past(word: &mut String) {
    if word.ends_with("ied") {
        word.truncate(word.len() - if word.len() == 4 { 1 } else { 2 });
        return;
    }
    if let Some(stem) = word.strip_suffix("eed") {
        if measure(stem) > 0 {
            word.pop();
        }
        return;
    }
    let stem = ["ed", "ing"].iter().find_map(|suffix| {
        word.strip_suffix(suffix).filter(|stem| consonants(stem).contains(&false))
    });
    let Some(length) = stem.map(str::len) else { return };
    word.truncate(length);
    let doubled = ends_in_double_consonant(word);
    if ["at", "bl", "iz"].iter().any(|end| word.ends_with(end)) {
        word.push('e');
    } else if doubled && !word.ends_with(['l', 's', 'z']) {
        word.pop();
    } else if !doubled && measure(word) == 1 && ends_in_cvc(word) {
        word.push('e');
    }
}

/// Step 1c, which NLTK applies after consonants only.
fn y_to_i(word: &mut String) {
    if let Some(stem) = word.strip_suffix('y')
        && stem.len() > 1
        && consonants(stem).last() == Some(&true)
    {
        word.pop();
        word.push('i');
    }
}

fn step_2(word: &mut String) {
    if let Some(stem) = word.strip_suffix("alli")
        && measure(stem) > 0
    {
        word.truncate(word.len() - 2);
        return step_2(word);
    }
    if !replace_suffix(word, STEP_2, 0)
        && word.ends_with("logi")
        && measure(&word[..word.len() - 3]) > 0
    {
        word.pop();
    }
}

fn step_4(word: &mut String) {
    for suffix in STEP_4 {
        let Some(stem) = word.strip_suffix(suffix) else { continue };
        let fits = suffix != "ion" || stem.ends_with(['s', 't']);
        if fits && measure(stem) > 1 {
            word.truncate(word.len() - suffix.len());
        }
        return;
    }
}

/// Step 5a.
fn final_e(word: &mut String) {
    if let Some(stem) = word.strip_suffix('e') {
        let measure = measure(stem);
        if measure > 1 || measure == 1 && !ends_in_cvc(stem) {
            word.pop();
        }
    }
}

/// Step 5b.
fn double_l(word: &mut String) {
    if word.ends_with("ll") && measure(&word[..word.len() - 1]) > 1 {
        word.pop();
    }
}

/// Whether a suffix was found; it is replaced where more than `least` is measured before it.
fn replace_suffix(word: &mut String, rules: Rules, least: usize) -> bool {
    for (suffix, by) in rules {
        if let Some(length) = word.strip_suffix(suffix).map(str::len) {
            if measure(&word[..length]) > least {
                word.truncate(length);
                word.push_str(by);
            }
            return true;
        }
    }
    false
}

/// For each letter whether it is a consonant; `y` is one at the beginning and after a vowel.
fn consonants(word: &str) -> Vec<bool> {
    let mut before = false;
    word.bytes()
        .map(|letter| {
            before = match letter {
                b'a' | b'e' | b'i' | b'o' | b'u' => false,
                b'y' => !before,
                _ => true,
            };
            before
        })
        .collect()
}

/// How often a consonant follows a vowel.
fn measure(word: &str) -> usize {
    consonants(word).windows(2).filter(|pair| pair == &[false, true]).count()
}

fn ends_in_double_consonant(word: &str) -> bool {
    let bytes = word.as_bytes();
    bytes.len() >= 2
        && bytes[bytes.len() - 1] == bytes[bytes.len() - 2]
        && consonants(word).last() == Some(&true)
}

/// Consonant, vowel, consonant other than w, x and y; or, NLTK's addition, a word of a vowel and a
/// consonant.
fn ends_in_cvc(word: &str) -> bool {
    match consonants(word).as_slice() {
        [.., true, false, true] => !word.ends_with(['w', 'x', 'y']),
        [false, true] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_have_their_stems() {
        let cases = [
            ("caresses", "caress"),
            ("ponies", "poni"),
            ("ties", "tie"),
            ("agreed", "agre"),
            ("plastered", "plaster"),
            ("motoring", "motor"),
            ("sing", "sing"),
            ("hopping", "hop"),
            ("falling", "fall"),
            ("filing", "file"),
            ("happy", "happi"),
            ("enjoy", "enjoy"),
            ("relational", "relat"),
            ("rationally", "ration"),
            ("geology", "geolog"),
            ("triplicate", "triplic"),
            ("adoption", "adopt"),
            ("controlling", "control"),
            ("skies", "sky"),
            ("succeed", "succeed"),
        ];
        for (word, expected) in cases {
            assert_eq!(stem(word), expected, "{word}");
        }
    }
}
