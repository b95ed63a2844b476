export const products = {
  espresso: { name: 'Espresso beans, 1 kg', cents: 2_400 },
  grinder: { name: 'Hand grinder', cents: 8_900 },
  kettle: { name: 'Gooseneck kettle', cents: 6_500 },
};

export type ProductId = keyof typeof products;
