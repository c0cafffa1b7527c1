"""What learns and how it is stepped: adapters on a frozen base or every weight, on one device or several."""
