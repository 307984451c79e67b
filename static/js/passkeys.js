// Says on the page why a passkey did not work; allauth's script only logs it.
document.addEventListener('allauth.error', function (event) {
  const reasons = {
    NotAllowedError: 'The browser got no passkey: it was cancelled, or took too long. Nothing was changed; try again.',
    InvalidStateError: 'This device has a passkey for your account already. Nothing was changed.',
    SecurityError: 'Passkeys do not work at this address. Open Hearth by its name (http://localhost… or https://…).'
  }
  const exception = event.detail.exception || {}
  const text = reasons[exception.name] || 'This browser can’t use a passkey here. Nothing was changed; use a code.'
  document.querySelectorAll('[data-passkey-error]').forEach(function (place) {
    place.textContent = text
    place.hidden = false
  })
  event.preventDefault()
})
