//! What is read out of a certificate besides what rustls needs: whose it is, and when it holds.

use std::sync::Arc;

use onceward::PeerCertificate;
use rustls::pki_types::CertificateDer;
use x509_cert::Certificate;
use x509_cert::der::Decode;

/// The subject in the form of RFC 4514, as the layer takes it. Of one that cannot be read it is empty, as of one
/// without a subject: neither names anybody.
pub(super) fn of(certificate: &CertificateDer<'_>) -> PeerCertificate {
    let subject = Certificate::from_der(certificate)
        .map(|certificate| certificate.tbs_certificate().subject().to_string())
        .unwrap_or_default();
    PeerCertificate(Arc::from(subject))
}

/// From when until when it holds, in seconds of Unix time. `None` where it cannot be read.
pub(super) fn validity(certificate: &CertificateDer<'_>) -> Option<(i64, i64)> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let validity = certificate.tbs_certificate().validity();
    let seconds = |time: x509_cert::time::Time| i64::try_from(time.to_unix_duration().as_secs()).ok();
    Some((seconds(validity.not_before)?, seconds(validity.not_after)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    fn spelled(parts: &[(DnType, &str)]) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in parts {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        of(certificate.der()).0.to_string()
    }

    #[test]
    fn a_subject_is_spelled_as_rfc_4514_says() {
        assert_eq!(
            spelled(&[
                (DnType::CountryName, "DE"),
                (DnType::OrganizationName, "Acme, Inc."),
                (DnType::CommonName, "client +1"),
            ]),
            r"CN=client \+1,O=Acme\, Inc.,C=DE"
        );
        // The last of the two would else be two principals in one.
        assert_eq!(spelled(&[(DnType::CommonName, "a\nheader x-user:b")]), r"CN=a\0aheader x-user:b");
        assert_eq!(spelled(&[]), "");
        assert_eq!(&*of(&CertificateDer::from_slice(b"no certificate")).0, "");
    }

    #[test]
    fn names_that_differ_are_spelled_differently() {
        let one = spelled(&[(DnType::CommonName, "a,O=b")]);
        let two = spelled(&[(DnType::OrganizationName, "b"), (DnType::CommonName, "a")]);
        assert_eq!((one.as_str(), two.as_str()), (r"CN=a\,O=b", "CN=a,O=b"));
    }
}
