interface Mail {
  to: string;
  text: string;
  idempotencyKey: string;
}

/** Stands for a mail service. */
export async function sendMail({ to, text }: Mail) {
  console.log(`Mail to ${to}: ${text}`);
}
